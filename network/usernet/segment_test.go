package usernet

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/network/lan"
)

// peer starts a guest in a network with others.
func peer(t *testing.T, dir string, names ...string) *guest {
	t.Helper()
	p, err := lan.Join(t.Context(), dir, lan.Member{Names: names, Subnet: DefaultSubnet})
	if err != nil {
		t.Fatal(err)
	}
	return newGuest(t, Config{LAN: p, ResolvConf: "/nonexistent"})
}

func TestPeers(t *testing.T) {
	dir := shortdir.New(t)
	a, b := peer(t, filepath.Join(dir, "blue"), "a"), peer(t, filepath.Join(dir, "blue"), "b", "web")
	other := peer(t, filepath.Join(dir, "red"), "other")
	_ = peer(t, filepath.Join(dir, "red"), "second")
	if got := b.n.Addresses().Guest; got[0].String() != "192.168.127.3/24" || got[1].String() != "fd61:7070:6c65:766d::3/64" {
		t.Errorf("the second has %v", got)
	}
	for _, p := range b.n.Addresses().Guest {
		if !a.ping(p.Addr(), deadline) {
			t.Errorf("no answer from %s", p)
		}
	}
	b.listen(80, func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	c, err := a.dial(netip.AddrPortFrom(b.n.addrs.Guest[0].Addr(), 80))
	if err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 3<<20)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d came back: %v", len(got), len(sent), err)
	}
	t.Run("names", func(t *testing.T) {
		for name, want := range map[string]string{
			"web.": "192.168.127.3", "WEB.applevm.internal.": "192.168.127.3", "a.": "192.168.127.2", "other.applevm.internal.": "",
		} {
			if got := a.addressOf(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	})
	// Nobody of another network is there: it has an own number 3.
	if !other.ping(netip.MustParseAddr("192.168.127.3"), deadline) {
		t.Error("no answer in the other network")
	}
	if err := b.n.Close(); err != nil {
		t.Fatal(err)
	}
	if a.ping(b.n.addrs.Guest[0].Addr(), time.Second) {
		t.Error("a machine that has gone answers")
	}
	if got := a.addressOf("web."); got != "" {
		t.Errorf("a machine that has gone has the address %q", got)
	}
}

// addressOf asks the gateway for the IPv4 address of a name.
func (g *guest) addressOf(name string) string {
	g.t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
	_ = b.StartQuestions()
	_ = b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
	query, err := b.Finish()
	if err != nil {
		g.t.Fatal(err)
	}
	c := g.dialUDP(netip.AddrPortFrom(g.n.addrs.Gateway[0], dnsPort))
	if _, err := c.Write(query); err != nil {
		g.t.Fatal(err)
	}
	buf := make([]byte, maxDatagram)
	k, err := c.Read(buf)
	if err != nil {
		g.t.Fatal(err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(buf[:k]); err != nil {
		g.t.Fatal(err)
	}
	for _, r := range m.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			return netip.AddrFrom4(a.A).String()
		}
	}
	return ""
}

// between puts a frame together from one MAC address to another.
func between(from, to net.HardwareAddr, kind tcpip.NetworkProtocolNumber, body []byte) []byte {
	frame := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(body))
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: linkAddress(from), DstAddr: linkAddress(to), Type: kind})
	return append(frame, body...)
}

func advert(from, to, target netip.Addr) []byte {
	msg := header.ICMPv6(make([]byte, header.ICMPv6NeighborAdvertMinimumSize))
	msg.SetType(header.ICMPv6NeighborAdvert)
	header.NDPNeighborAdvert(msg.MessageBody()).SetTargetAddress(tcpip.AddrFromSlice(target.AsSlice()))
	return packet6(from, to, header.ICMPv6ProtocolNumber, msg)
}

// arpOf is an ARP message.
func arpOf(op header.ARPOp, mac net.HardwareAddr, from, target netip.Addr) []byte {
	b := header.ARP(arpRequest(from, target))
	b.SetOp(op)
	copy(b.HardwareAddressSender(), mac)
	return b
}

type segmentFrame struct {
	name     string
	frame    []byte
	from, to int
	ok       bool
}

func segmentFrames(t testing.TB) []segmentFrame {
	t.Helper()
	alone, err := AddressesIn(DefaultSubnet)
	if err != nil {
		t.Fatal(err)
	}
	m := func(n int) net.HardwareAddr { return alone.member(n).MAC }
	v4 := func(n int) netip.Addr { return alone.member(n).Guest[0].Addr() }
	v6 := func(n int) netip.Addr { return alone.member(n).Guest[1].Addr() }
	local5 := netip.MustParseAddr("fe80::61:76ff:fe6d:5") // what Linux makes of the MAC address
	all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	group := net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 6}
	ask6 := solicit(v6(5), v6(6))
	toGroup := slices.Clone(ask6)
	header.IPv6(toGroup).SetDestinationAddress(header.SolicitedNodeAddr(tcpip.AddrFromSlice(v6(6).AsSlice())))
	icmp := func(kind header.ICMPv6Type) []byte {
		msg := header.ICMPv6(make([]byte, 40))
		msg.SetType(kind)
		return packet6(v6(5), v6(6), header.ICMPv6ProtocolNumber, msg)
	}
	const ip4, ip6, arp = header.IPv4ProtocolNumber, header.IPv6ProtocolNumber, header.ARPProtocolNumber
	return []segmentFrame{
		{"IPv4", between(m(5), m(6), ip4, packet4(v4(5), v4(6), 17, nil)), 5, 6, true},
		{"IPv6", between(m(5), m(6), ip6, packet6(v6(5), v6(6), 17, nil)), 5, 6, true},
		{"ARP request", between(m(5), all, arp, arpOf(header.ARPRequest, m(5), v4(5), v4(6))), 5, 6, true},
		{"ARP request of one", between(m(5), m(6), arp, arpOf(header.ARPRequest, m(5), v4(5), v4(6))), 5, 6, true},
		{"ARP reply", between(m(5), m(6), arp, arpOf(header.ARPReply, m(5), v4(5), v4(6))), 5, 6, true},
		{"solicitation", between(m(5), group, ip6, toGroup), 5, 6, true},
		{"solicitation of one", between(m(5), m(6), ip6, ask6), 5, 6, true},
		{"solicitation from a link-local address", between(m(5), m(6), ip6, solicit(local5, v6(6))), 5, 6, true},
		{"advertisement", between(m(5), m(6), ip6, advert(v6(5), v6(6), v6(5))), 5, 6, true},
		{"echo", between(m(5), m(6), ip6, icmp(header.ICMPv6EchoRequest)), 5, 6, true},

		{"nothing", nil, 0, 0, false},
		{"the gateway's MAC address", between(gatewayMAC, m(6), ip4, packet4(v4(5), v4(6), 17, nil)), 0, 0, false},
		{"another's MAC address", between(m(7), m(6), ip4, packet4(v4(5), v4(6), 17, nil)), 0, 0, false},
		{"another's IPv4 address", between(m(5), m(6), ip4, packet4(v4(7), v4(6), 17, nil)), 0, 0, false},
		{"the gateway's IPv4 address", between(m(5), m(6), ip4, packet4(alone.Gateway[0], v4(6), 17, nil)), 0, 0, false},
		{"a far IPv4 address", between(m(5), m(6), ip4, packet4(netip.MustParseAddr("198.51.100.1"), v4(6), 17, nil)), 0, 0, false},
		{"to a far IPv4 address by a member", between(m(5), m(6), ip4, packet4(v4(5), netip.MustParseAddr("198.51.100.1"), 17, nil)), 0, 0, false},
		{"to one by another", between(m(5), m(7), ip4, packet4(v4(5), v4(6), 17, nil)), 0, 0, false},
		{"to all", between(m(5), all, ip4, packet4(v4(5), v4(6), 17, nil)), 0, 0, false},
		{"another's IPv6 address", between(m(5), m(6), ip6, packet6(v6(7), v6(6), 17, nil)), 0, 0, false},
		{"another's link-local address", between(m(4), m(6), ip6, solicit(local5, v6(6))), 0, 0, false},
		{"ARP with another's MAC address", between(m(5), m(6), arp, arpOf(header.ARPReply, m(7), v4(5), v4(6))), 0, 0, false},
		{"ARP with another's IPv4 address", between(m(5), m(6), arp, arpOf(header.ARPReply, m(5), v4(7), v4(6))), 0, 0, false},
		{"ARP for the gateway's address", between(m(5), m(6), arp, arpOf(header.ARPReply, m(5), alone.Gateway[0], v4(6))), 0, 0, false},
		{"ARP reply to all", between(m(5), all, arp, arpOf(header.ARPReply, m(5), v4(5), v4(6))), 0, 0, false},
		{"ARP request for the gateway", between(m(5), all, arp, arpOf(header.ARPRequest, m(5), v4(5), alone.Gateway[0])), 0, 0, false},
		{"advertisement of another's address", between(m(5), m(6), ip6, advert(v6(5), v6(6), v6(7))), 0, 0, false},
		{"advertisement of the gateway's address", between(m(5), m(6), ip6, advert(v6(5), v6(6), alone.Gateway[1])), 0, 0, false},
		{"solicitation by another", between(m(5), m(7), ip6, solicit(v6(5), v6(6))), 0, 0, false},
		{"router advertisement", between(m(5), m(6), ip6, icmp(header.ICMPv6RouterAdvert)), 0, 0, false},
		{"redirect", between(m(5), m(6), ip6, icmp(header.ICMPv6RedirectMsg)), 0, 0, false},
		{"extension headers", between(m(5), m(6), ip6, packet6(v6(5), v6(6), 60, make([]byte, 40))), 0, 0, false},
		{"cut", between(m(5), m(6), ip6, advert(v6(5), v6(6), v6(5))[:60]), 0, 0, false},
		{"another protocol", between(m(5), m(6), 0x88cc, make([]byte, 60)), 0, 0, false},
	}
}

func TestSegment(t *testing.T) {
	s := segment{DefaultSubnet, 5}
	taker := segment{DefaultSubnet, 6}
	for _, tt := range segmentFrames(t) {
		from, to, ok := s.check(tt.frame)
		if ok != tt.ok || ok && (from != tt.from || to != tt.to) {
			t.Errorf("%s: from %d to %d, %v", tt.name, from, to, ok)
		}
		if _, sent := s.outgoing(tt.frame); sent != tt.ok || taker.incoming(tt.frame) != tt.ok {
			t.Errorf("%s: sent %v, taken %v", tt.name, sent, taker.incoming(tt.frame))
		}
		if _, sent := taker.outgoing(tt.frame); sent || s.incoming(tt.frame) {
			t.Errorf("%s: another has sent it (%v), or its sender gets it (%v)", tt.name, sent, s.incoming(tt.frame))
		}
	}
}

// FuzzSegment: what a member may send another is what its taker accepts.
func FuzzSegment(f *testing.F) {
	for _, tt := range segmentFrames(f) {
		f.Add(tt.frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, subnet := range []netip.Prefix{DefaultSubnet, netip.MustParsePrefix("10.1.2.8/29")} {
			s := segment{subnet, 5}
			to, ok := s.outgoing(frame)
			if !ok {
				continue
			}
			if eth := header.Ethernet(frame); to == 5 || to < lan.FirstNumber || to > lan.LastNumber(subnet) || eth.SourceAddress() != linkAddress(memberMAC(5)) {
				t.Errorf("%x goes to %d", frame, to)
			}
			if !(segment{subnet, to}).incoming(frame) {
				t.Errorf("%x is sent to %d, who does not take it", frame, to)
			}
		}
	})
}
