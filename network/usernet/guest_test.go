package usernet

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// deadline is for hangs only.
const deadline = 2 * time.Minute

// guest is a machine's end of a network: a stack of its own. Real guests are
// what the end-to-end tests have.
type guest struct {
	t     *testing.T
	n     *Network
	stack *stack.Stack
}

// guestLink is a link whose frames all go to the stack.
type guestLink struct{ *link }

func (l guestLink) read() {
	defer close(l.done)
	buf := make([]byte, header.EthernetMinimumSize+DefaultMTU)
	for {
		n, err := l.conn.Read(buf)
		if err != nil {
			return
		}
		l.deliver(append([]byte(nil), buf[:n]...))
	}
}

func newGuest(t *testing.T, cfg Config) *guest {
	t.Helper()
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(cfg, ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	conn, err := net.FileConn(theirs)
	_ = theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	a := n.Addresses()
	g := &guest{t: t, n: n, stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{arp.NewProtocol, ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})}
	l := guestLink{&link{conn: conn, mtu: uint32(n.cfg.MTU), mac: linkAddress(a.MAC), done: make(chan struct{})}}
	if err := g.stack.CreateNIC(nicID, l); err != nil {
		t.Fatal(err)
	}
	go l.read()
	t.Cleanup(func() { _ = conn.Close(); g.stack.Destroy() })
	for i, p := range a.Guest {
		err := g.stack.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
			Protocol:          protocolOf(p.Addr()),
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(p.Addr().AsSlice()), PrefixLen: p.Bits()},
		}, stack.AddressProperties{})
		if err != nil {
			t.Fatal(err)
		}
		all := []tcpip.Subnet{header.IPv4EmptySubnet, header.IPv6EmptySubnet}[i]
		on, rerr := tcpip.NewSubnet(tcpip.AddrFromSlice(p.Masked().Addr().AsSlice()), tcpip.MaskFromBytes(net.CIDRMask(p.Bits(), p.Addr().BitLen())))
		if rerr != nil {
			t.Fatal(rerr)
		}
		g.stack.AddRoute(tcpip.Route{Destination: on, NIC: nicID})
		g.stack.AddRoute(tcpip.Route{Destination: all, Gateway: tcpip.AddrFromSlice(a.Gateway[i].AsSlice()), NIC: nicID})
	}
	return g
}

// dial connects from the guest.
func (g *guest) dial(to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(g.t.Context(), deadline)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, g.stack, fullAddress(to), protocolOf(to.Addr()))
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(deadline))
		g.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// dialUDP connects a UDP socket of the guest's.
func (g *guest) dialUDP(to netip.AddrPort) *gonet.UDPConn {
	g.t.Helper()
	remote := fullAddress(to)
	c, err := gonet.DialUDP(g.stack, nil, &remote, protocolOf(to.Addr()))
	if err != nil {
		g.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(deadline))
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

// listen accepts connections in the guest, each handled by serve.
func (g *guest) listen(port uint16, serve func(net.Conn)) {
	g.t.Helper()
	l, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: nicID, Port: port}, ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Shutdown(); _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
}

// ping sends one echo request from the guest and waits for its answer.
func (g *guest) ping(to netip.Addr, wait time.Duration) bool {
	g.t.Helper()
	var wq waiter.Queue
	number := icmp.ProtocolNumber4
	request := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+56))
	request.SetType(header.ICMPv4Echo)
	b := []byte(request)
	if to.Is6() {
		number = icmp.ProtocolNumber6
		r := header.ICMPv6(make([]byte, header.ICMPv6EchoMinimumSize+56))
		r.SetType(header.ICMPv6EchoRequest)
		b = r
	}
	ep, err := g.stack.NewEndpoint(number, protocolOf(to), &wq)
	if err != nil {
		g.t.Fatal(err)
	}
	c := gonet.NewUDPConn(&wq, ep)
	defer func() { _ = c.Close() }()
	if err := ep.Connect(fullAddress(netip.AddrPortFrom(to, 0))); err != nil {
		g.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write(b); err != nil {
		g.t.Fatal(err)
	}
	_, rerr := c.Read(make([]byte, 1024))
	return rerr == nil
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
