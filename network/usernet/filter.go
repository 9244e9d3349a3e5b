package usernet

import (
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// filter drops what is not the guest's own, so that no state is kept for
// addresses that it makes up, and what asks for the owner of an address that is
// neither the gateway's nor the host's: the stack, which takes packets to any
// address, would claim them all, the guest's own among them.
type filter struct {
	addrs Addresses
}

// allows tells whether the stack may see a frame.
func (f *filter) allows(frame []byte) bool {
	if len(frame) < header.EthernetMinimumSize {
		return false
	}
	eth := header.Ethernet(frame)
	if eth.SourceAddress() != tcpip.LinkAddress(f.addrs.MAC) {
		return false
	}
	switch body := frame[header.EthernetMinimumSize:]; eth.Type() {
	case header.ARPProtocolNumber:
		return f.allowsARP(body)
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(body)
		return ip.IsValid(len(body)) && netip.AddrFrom4(ip.SourceAddress().As4()) == f.addrs.Guest[0].Addr()
	case header.IPv6ProtocolNumber:
		return f.allowsIPv6(body)
	}
	return false
}

func (f *filter) allowsARP(body []byte) bool {
	arp := header.ARP(body)
	if !arp.IsValid() {
		return false
	}
	if sender := netip.AddrFrom4([4]byte(arp.ProtocolAddressSender())); sender != f.addrs.Guest[0].Addr() {
		return false
	}
	return arp.Op() != header.ARPRequest || f.ours(netip.AddrFrom4([4]byte(arp.ProtocolAddressTarget())))
}

func (f *filter) allowsIPv6(body []byte) bool {
	ip := header.IPv6(body)
	if !ip.IsValid(len(body)) {
		return false
	}
	src := netip.AddrFrom16(ip.SourceAddress().As16())
	// Link-local addresses ask for neighbours, and for nothing else.
	if src != f.addrs.Guest[1].Addr() && (!src.IsLinkLocalUnicast() || ip.TransportProtocol() != header.ICMPv6ProtocolNumber) {
		return false
	}
	if ip.TransportProtocol() != header.ICMPv6ProtocolNumber {
		return true
	}
	icmp := header.ICMPv6(ip.Payload())
	if len(icmp) < header.ICMPv6MinimumSize {
		return false
	}
	switch icmp.Type() {
	case header.ICMPv6NeighborSolicit:
		if len(icmp) < header.ICMPv6NeighborSolicitMinimumSize {
			return false
		}
		target := header.NDPNeighborSolicit(icmp.MessageBody()).TargetAddress()
		return f.ours(netip.AddrFrom16(target.As16()))
	case header.ICMPv6RouterSolicit, header.ICMPv6RouterAdvert, header.ICMPv6RedirectMsg:
		return false
	}
	return true
}

// ours tells whether an address is one that the gateway answers for.
func (f *filter) ours(a netip.Addr) bool {
	return a == f.addrs.Gateway[0] || a == f.addrs.Host[0] || a == f.addrs.Gateway[1] || a == f.addrs.Host[1]
}

// linkAddress converts a MAC address.
func linkAddress(mac net.HardwareAddr) tcpip.LinkAddress { return tcpip.LinkAddress(mac) }
