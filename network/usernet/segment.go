package usernet

import (
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/applevm/applevm/network/lan"
)

// segment is what the machines of one network (Config.LAN) send each other. Their
// addresses follow from their numbers, so that each frame can be checked for
// itself, by who sends it in the guest's place and by who receives it: it is from
// the one member whose addresses it has, and for another. The rules leave no way
// to claim another's addresses, nor to be the others' router.
type segment struct {
	// subnet is the IPv4 network.
	subnet netip.Prefix
	// number is the guest's own.
	number int
}

// memberMAC is the MAC address of a member.
func memberMAC(number int) net.HardwareAddr {
	mac := append(net.HardwareAddr(nil), guestMAC...)
	mac[5] = byte(number)
	return mac
}

// member returns the addresses of a member of the network.
func (a Addresses) member(number int) Addresses {
	a.MAC = memberMAC(number)
	v4 := a.Gateway[0].As4()
	v4[3] += byte(number - 1) // the gateway is number 1
	v6 := a.Gateway[1].As16()
	v6[15] = byte(number)
	a.Guest = [2]netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4(v4), a.Guest[0].Bits()), netip.PrefixFrom(netip.AddrFrom16(v6), a.Guest[1].Bits()),
	}
	return a
}

// outgoing tells for whom a frame of the guest's is; false if it is for no other
// member, or not to be sent.
func (s segment) outgoing(frame []byte) (to int, ok bool) {
	from, to, ok := s.check(frame)
	return to, ok && from == s.number && to != s.number
}

// incoming tells whether the guest may get a frame.
func (s segment) incoming(frame []byte) bool {
	from, to, ok := s.check(frame)
	return ok && from != s.number && to == s.number
}

// check says from which member to which a frame is; false if it is not in order.
func (s segment) check(frame []byte) (from, to int, ok bool) {
	if len(frame) < header.EthernetMinimumSize {
		return 0, 0, false
	}
	eth := header.Ethernet(frame)
	if from, ok = s.ofMAC(eth.SourceAddress()); !ok {
		return 0, 0, false
	}
	dst := eth.DestinationAddress()
	// A question for a member's MAC address may be asked of all.
	asked := false
	switch body := frame[header.EthernetMinimumSize:]; eth.Type() {
	case header.ARPProtocolNumber:
		to, asked, ok = s.checkARP(body, eth.SourceAddress(), from)
		asked = asked && dst == header.EthernetBroadcastAddress
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(body)
		if !ip.IsValid(len(body)) {
			return 0, 0, false
		}
		var sender int
		sender, ok = s.of4(ip.SourceAddress())
		if ok = ok && sender == from; ok {
			to, ok = s.of4(ip.DestinationAddress())
		}
	case header.IPv6ProtocolNumber:
		to, asked, ok = s.checkIPv6(body, from)
		asked = asked && header.IsMulticastEthernetAddress(dst)
	default:
		return 0, 0, false
	}
	if ok && !asked {
		var taker int
		taker, ok = s.ofMAC(dst)
		ok = ok && taker == to
	}
	return from, to, ok
}

func (s segment) checkARP(body []byte, mac tcpip.LinkAddress, from int) (to int, asked, ok bool) {
	arp := header.ARP(body)
	if !arp.IsValid() || tcpip.LinkAddress(arp.HardwareAddressSender()) != mac {
		return 0, false, false
	}
	sender, ok := s.of4(tcpip.AddrFromSlice(arp.ProtocolAddressSender()))
	if !ok || sender != from {
		return 0, false, false
	}
	to, ok = s.of4(tcpip.AddrFromSlice(arp.ProtocolAddressTarget()))
	return to, arp.Op() == header.ARPRequest, ok
}

func (s segment) checkIPv6(body []byte, from int) (to int, asked, ok bool) {
	ip := header.IPv6(body)
	if !ip.IsValid(len(body)) {
		return 0, false, false
	}
	if sender, ok := s.of6(ip.SourceAddress()); !ok || sender != from {
		return 0, false, false
	}
	to, ok = s.of6(ip.DestinationAddress())
	switch ip.TransportProtocol() {
	case header.TCPProtocolNumber, header.UDPProtocolNumber, fragment, sctp:
		return to, false, ok
	case header.ICMPv6ProtocolNumber:
	default:
		// Behind other extension headers there may be what must be checked.
		return 0, false, false
	}
	icmp := header.ICMPv6(ip.Payload())
	if len(icmp) < header.ICMPv6MinimumSize {
		return 0, false, false
	}
	switch icmp.Type() {
	case header.ICMPv6RouterSolicit, header.ICMPv6RouterAdvert, header.ICMPv6RedirectMsg:
		return 0, false, false
	case header.ICMPv6NeighborAdvert:
		if len(icmp) < header.ICMPv6NeighborAdvertMinimumSize {
			return 0, false, false
		}
		own, isOwn := s.of6(header.NDPNeighborAdvert(icmp.MessageBody()).TargetAddress())
		return to, false, ok && isOwn && own == from
	case header.ICMPv6NeighborSolicit:
		if len(icmp) < header.ICMPv6NeighborSolicitMinimumSize {
			return 0, false, false
		}
		target := header.NDPNeighborSolicit(icmp.MessageBody()).TargetAddress()
		about, isMember := s.of6(target)
		if ip.DestinationAddress() == header.SolicitedNodeAddr(target) {
			return about, true, isMember
		}
		return to, false, ok && isMember && about == to
	}
	return to, false, ok
}

// Protocol numbers (IANA) that gVisor does not name.
const (
	fragment = tcpip.TransportProtocolNumber(44)  // RFC 8200, section 4.5; Linux takes no neighbour's messages in them (RFC 6980)
	sctp     = tcpip.TransportProtocolNumber(132) // RFC 9260
)

// ofMAC returns the member that has a MAC address.
func (s segment) ofMAC(mac tcpip.LinkAddress) (int, bool) {
	if len(mac) != len(guestMAC) || mac[:5] != tcpip.LinkAddress(guestMAC[:5]) {
		return 0, false
	}
	return s.valid(int(mac[5]))
}

// of4 returns the member that has an IPv4 address.
func (s segment) of4(a tcpip.Address) (int, bool) {
	base, b := s.subnet.Addr().As4(), a.As4()
	if [3]byte(base[:3]) != [3]byte(b[:3]) {
		return 0, false
	}
	return s.valid(int(b[3]) - int(base[3]))
}

// of6 returns the member that has an IPv6 address: of the network, or the one of
// the link that the kernel makes of the MAC address (RFC 4291, appendix A).
func (s segment) of6(a tcpip.Address) (int, bool) {
	b := a.As16()
	network := subnet6.Addr().As16()
	if [15]byte(b[:15]) != [15]byte(network[:15]) && [15]byte(b[:15]) != onLink {
		return 0, false
	}
	return s.valid(int(b[15]))
}

// onLink begins the members' link-local addresses: guestMAC with its bit for
// locally administered addresses turned, and ff:fe in the middle.
var onLink = [15]byte{0xfe, 0x80, 8: guestMAC[0] ^ 2, guestMAC[1], guestMAC[2], 0xff, 0xfe, guestMAC[3], guestMAC[4]}

func (s segment) valid(number int) (int, bool) {
	return number, number >= lan.FirstNumber && number <= lan.LastNumber(s.subnet)
}

// takePeer takes the frames that are for other members.
func (n *Network) takePeer(frame []byte) bool {
	if n.cfg.LAN == nil {
		return false
	}
	to, ok := n.segment.outgoing(frame)
	if ok {
		n.cfg.LAN.Send(to, frame)
	}
	return ok
}

// receivePeers gives the guest what other members send it, until the network
// ends.
func (n *Network) receivePeers() {
	buf := make([]byte, header.EthernetMinimumSize+n.cfg.MTU)
	for {
		// A longer frame is cut, and not in order then.
		k, err := n.cfg.LAN.Receive(buf)
		if err != nil {
			return
		}
		if n.segment.incoming(buf[:k]) {
			n.link.send(buf[:k])
		}
	}
}
