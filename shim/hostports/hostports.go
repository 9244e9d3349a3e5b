// Package hostports makes what a container with the host's network listens on
// appear on the host's loopback addresses, and disappear with it.
//
// The guest tells which ports there are, and is not trusted with that: it gets no
// other addresses of the host than the loopback ones, no ports below 1024 that the
// shim's user may not open, and no more than Max. TCP connections are carried
// over vsock to the agent, which makes them on the machine's loopback: so a
// server that listens on ::1 only is reached too, and sees its clients where it
// expects them. Datagrams go by the user network.
package hostports

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/guest/stream"
	"github.com/applevm/applevm/internal/accept"
	"github.com/applevm/applevm/network/usernet"
)

// Max is how many ports of one container appear.
const Max = api.MaxListeners

// dialTimeout is how long the agent may take to accept.
const dialTimeout = 10 * time.Second

// Options is what Ports needs.
type Options struct {
	// Dial connects to a vsock port of the guest.
	Dial func(ctx context.Context, port uint32) (net.Conn, error)
	// Network publishes UDP ports.
	Network *usernet.Network
	// MaxConnections bounds the TCP connections at a time.
	MaxConnections int
}

// Ports are the ports of one container. Its methods are for one goroutine.
type Ports struct {
	opts  Options
	slots chan struct{}
	open  map[target]func() // what closes it
	fails map[target]string // told, and not to be told again
	log   func(string, ...any)

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// target is a port of the host, and where it leads to.
type target struct {
	protocol string
	host     netip.AddrPort
}

// New returns ports of which none is open.
func New(ctx context.Context, opts Options) *Ports {
	p := &Ports{
		opts: opts, slots: make(chan struct{}, opts.MaxConnections),
		open: map[target]func(){}, fails: map[target]string{},
		log: log.G(ctx).Warnf,
	}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

var loopback = [2]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// targets says where a listener of the guest's appears; on no address if it is
// none that a process of the host could have.
func targets(l *guestv1.Listener) []target {
	a, ok := netip.AddrFromSlice(l.GetAddress())
	if !ok || l.GetPort() == 0 || l.GetPort() > 65535 {
		return nil
	}
	a = a.Unmap()
	var on []netip.Addr
	switch {
	case a.Is4() && (a.IsUnspecified() || a.IsLoopback() || a.IsGlobalUnicast()):
		on = loopback[:1]
	case a.IsUnspecified():
		on = []netip.Addr{loopback[0], loopback[1]} // Linux's default: IPv4 too (ipv6(7))
	case a.IsLoopback() || a.IsGlobalUnicast():
		on = loopback[1:]
	}
	if l.GetProtocol() == "udp" && (a.IsLoopback() || a.Is6() && !a.IsUnspecified()) {
		return nil // nobody but the machine itself reaches those
	}
	var out []target
	for _, addr := range on {
		out = append(out, target{l.GetProtocol(), netip.AddrPortFrom(addr, uint16(l.GetPort()))})
	}
	return out
}

// Set opens and closes ports so that those in list are open, and logs which
// cannot be.
func (p *Ports) Set(list []*guestv1.Listener) {
	want := map[target]bool{}
	for _, l := range list {
		for _, t := range targets(l) {
			if len(want) < Max {
				want[t] = true
			}
		}
	}
	for t, stop := range p.open {
		if !want[t] {
			stop()
			delete(p.open, t)
		}
	}
	for t := range p.fails {
		if !want[t] {
			delete(p.fails, t)
		}
	}
	for t := range want {
		if p.open[t] != nil {
			continue
		}
		stop, err := p.listen(t)
		if err == nil {
			p.open[t] = stop
			delete(p.fails, t)
			continue
		}
		if p.fails[t] != err.Error() {
			p.fails[t] = err.Error()
			p.log("the container listens on %s port %d, which cannot appear on the host: %v", t.protocol, t.host.Port(), err)
		}
	}
}

// Close closes all ports and ends their connections.
func (p *Ports) Close() {
	p.Set(nil)
	p.cancel()
	p.wg.Wait()
}

func (p *Ports) listen(t target) (stop func(), err error) {
	switch t.protocol {
	case "udp":
		port := usernet.Port{Protocol: "udp", Host: t.host, Guest: t.host.Port()}
		if err := p.opts.Network.Publish(port); err != nil {
			return nil, err
		}
		return func() { p.opts.Network.Unpublish(port) }, nil
	case "tcp":
		l, err := net.Listen("tcp", t.host.String())
		if err != nil {
			return nil, err
		}
		p.wg.Go(func() { p.accept(l, t.host) })
		return func() { _ = l.Close() }, nil
	}
	return nil, fmt.Errorf("protocol %q is unknown", t.protocol)
}

func (p *Ports) accept(l net.Listener, to netip.AddrPort) {
	accept.TCP(p.ctx, l, func(client *net.TCPConn) {
		select {
		case p.slots <- struct{}{}:
			p.wg.Go(func() {
				defer func() { <-p.slots }()
				p.carry(client, to)
			})
		default:
			reset(client)
		}
	})
}

// carry connects a client to the guest, until both directions have ended.
func (p *Ports) carry(client *net.TCPConn, to netip.AddrPort) {
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	defer cancel()
	guest, err := p.opts.Dial(ctx, api.ForwardPort)
	if err != nil {
		reset(client)
		return
	}
	defer func() { _ = guest.Close() }()
	// The end of p must end the first write too, before Relay sees to it.
	stop := context.AfterFunc(p.ctx, func() { _ = guest.Close() })
	defer stop()
	out := stream.NewWriter(guest)
	if _, err := out.Write(forwardTo(to)); err != nil {
		reset(client)
		return
	}
	stream.Relay(p.ctx, guest, stream.NewReader(guest), out, client)
}

// forwardTo is what tells the agent where to (api.ForwardPort).
func forwardTo(to netip.AddrPort) []byte {
	family := byte(api.ForwardIPv4)
	if to.Addr().Is6() {
		family = api.ForwardIPv6
	}
	return []byte{family, byte(to.Port() >> 8), byte(to.Port())}
}

// reset ends a client's connection so that it learns that this was not in order.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
