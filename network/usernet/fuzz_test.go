package usernet

import (
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// frameOf wraps a packet of the guest's in a frame to the gateway.
func frameOf(kind tcpip.NetworkProtocolNumber, body []byte) []byte {
	frame := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(body))
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: linkAddress(guestMAC), DstAddr: linkAddress(gatewayMAC), Type: kind,
	})
	return append(frame, body...)
}

// packet4 and packet6 are packets of the guest's with a payload.
func packet4(from, to netip.Addr, protocol uint8, payload []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize+len(payload))
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: protocol,
		SrcAddr: tcpip.AddrFromSlice(from.AsSlice()), DstAddr: tcpip.AddrFromSlice(to.AsSlice()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	copy(b[header.IPv4MinimumSize:], payload)
	return b
}

func packet6(from, to netip.Addr, protocol tcpip.TransportProtocolNumber, payload []byte) []byte {
	b := make([]byte, header.IPv6MinimumSize+len(payload))
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength: uint16(len(payload)), TransportProtocol: protocol, HopLimit: 255,
		SrcAddr: tcpip.AddrFromSlice(from.AsSlice()), DstAddr: tcpip.AddrFromSlice(to.AsSlice()),
	})
	copy(b[header.IPv6MinimumSize:], payload)
	return b
}

func arpRequest(from, target netip.Addr) []byte {
	b := header.ARP(make([]byte, header.ARPSize))
	b.SetIPv4OverEthernet()
	b.SetOp(header.ARPRequest)
	copy(b.HardwareAddressSender(), guestMAC)
	copy(b.ProtocolAddressSender(), from.AsSlice())
	copy(b.ProtocolAddressTarget(), target.AsSlice())
	return b
}

func solicit(from, target netip.Addr) []byte {
	msg := header.ICMPv6(make([]byte, header.ICMPv6NeighborSolicitMinimumSize))
	msg.SetType(header.ICMPv6NeighborSolicit)
	header.NDPNeighborSolicit(msg.MessageBody()).SetTargetAddress(tcpip.AddrFromSlice(target.AsSlice()))
	return packet6(from, target, header.ICMPv6ProtocolNumber, msg)
}

func TestFilter(t *testing.T) {
	a, err := AddressesIn(netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	guest4, guest6 := a.Guest[0].Addr(), a.Guest[1].Addr()
	far4, far6 := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
	foreign := frameOf(header.IPv4ProtocolNumber, packet4(guest4, far4, 17, nil))
	copy(foreign[6:12], "\x02other")
	for _, tt := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"IPv4", frameOf(header.IPv4ProtocolNumber, packet4(guest4, far4, 17, nil)), true},
		{"IPv6", frameOf(header.IPv6ProtocolNumber, packet6(guest6, far6, 17, nil)), true},
		{"ARP for the gateway", frameOf(header.ARPProtocolNumber, arpRequest(guest4, a.Gateway[0])), true},
		{"solicitation of the host", frameOf(header.IPv6ProtocolNumber, solicit(guest6, a.Host[1])), true},
		{"solicitation from link-local", frameOf(header.IPv6ProtocolNumber, solicit(netip.MustParseAddr("fe80::1"), a.Gateway[1])), true},
		{"empty", nil, false},
		{"cut", frameOf(header.IPv4ProtocolNumber, nil)[:13], false},
		{"no packet", frameOf(header.IPv4ProtocolNumber, nil), false},
		{"another MAC address", foreign, false},
		{"another IPv4 address", frameOf(header.IPv4ProtocolNumber, packet4(far4, far4, 17, nil)), false},
		{"another IPv6 address", frameOf(header.IPv6ProtocolNumber, packet6(far6, far6, 17, nil)), false},
		{"link-local UDP", frameOf(header.IPv6ProtocolNumber, packet6(netip.MustParseAddr("fe80::1"), far6, 17, nil)), false},
		{"ARP for itself", frameOf(header.ARPProtocolNumber, arpRequest(guest4, guest4)), false},
		{"ARP from another", frameOf(header.ARPProtocolNumber, arpRequest(far4, a.Gateway[0])), false},
		{"solicitation of itself", frameOf(header.IPv6ProtocolNumber, solicit(guest6, guest6)), false},
		{"another protocol", frameOf(0x88cc, make([]byte, 60)), false},
	} {
		if got := (&filter{a}).allows(tt.frame); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// FuzzFrame gives a network whatever a guest may send.
func FuzzFrame(f *testing.F) {
	a, err := AddressesIn(netip.Prefix{})
	if err != nil {
		f.Fatal(err)
	}
	guest4, guest6 := a.Guest[0].Addr(), a.Guest[1].Addr()
	echo := make([]byte, 64)
	echo[0] = byte(header.ICMPv4Echo)
	f.Add([]byte(nil))
	f.Add(frameOf(header.ARPProtocolNumber, arpRequest(guest4, a.Gateway[0])))
	f.Add(frameOf(header.IPv4ProtocolNumber, packet4(guest4, a.Gateway[0], 1, echo)))
	f.Add(frameOf(header.IPv4ProtocolNumber, packet4(guest4, a.Gateway[0], 17, []byte{0, 99, 0, 53, 0, 20, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})))
	f.Add(frameOf(header.IPv6ProtocolNumber, packet6(guest6, a.Gateway[1], 17, []byte{0, 99, 0, 53, 0, 10, 0, 0, 1, 2})))
	f.Add(frameOf(header.IPv6ProtocolNumber, solicit(guest6, a.Host[1])))
	f.Add(frameOf(header.IPv6ProtocolNumber, packet6(guest6, netip.MustParseAddr("2001:db8::1"), header.ICMPv6ProtocolNumber, slices.Concat([]byte{128}, make([]byte, 40)))))
	f.Fuzz(func(t *testing.T, frame []byte) {
		flt := &filter{a}
		if !flt.allows(frame) {
			return
		}
		if e, ok := parseEcho(slices.Clone(frame)); ok {
			out := e.reply(e.icmp[8:])
			if len(out) != len(frame) || header.Ethernet(out).DestinationAddress() != linkAddress(guestMAC) {
				t.Errorf("the answer to %x is %x", frame, out)
			}
		}
		ours, theirs, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		n, err := New(Config{ResolvConf: "/nonexistent", Limits: Limits{TCP: 1, UDP: 1}}, ours)
		if err != nil {
			t.Fatal(err)
		}
		n.link.deliver(slices.Clone(frame))
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}
