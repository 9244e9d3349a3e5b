package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/applevm/applevm/internal/accept"
)

// Port is a port of the guest that appears on the host.
type Port struct {
	// Protocol is "tcp" or "udp".
	Protocol string
	// Host is the host's address and port; an unspecified address stands for all
	// addresses of its family.
	Host netip.AddrPort
	// Guest is the guest's port.
	Guest uint16
}

func (p Port) String() string { return fmt.Sprintf("%s port %s", p.Protocol, p.Host) }

// Publish opens a port on the host, for as long as the network lives or until
// Unpublish. Calls before the guest is up wait for it.
func (n *Network) Publish(p Port) error {
	stop, err := n.listen(p)
	if err != nil {
		return explain(p, err)
	}
	n.mu.Lock()
	_, twice := n.published[p]
	closed := n.closed
	if !twice && !closed {
		n.published[p] = stop
	}
	n.mu.Unlock()
	if twice || closed {
		stop()
		return fmt.Errorf("publish %s: %w", p, net.ErrClosed)
	}
	return nil
}

// Unpublish closes a port that Publish has opened. Connections go on.
func (n *Network) Unpublish(p Port) {
	n.mu.Lock()
	stop := n.published[p]
	delete(n.published, p)
	n.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// explain says what is wrong with a port, and what to do.
func explain(p Port, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("publish %s: it is in use on the host: choose another port, or end what uses it: %w", p, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("publish %s: this user may not open it: choose a port from 1024 on: %w", p, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("publish %s: the host does not have this address: %w", p, err)
	}
	return fmt.Errorf("publish %s: %w", p, err)
}

func (n *Network) listen(p Port) (stop func(), err error) {
	family := "6"
	if p.Host.Addr().Is4() {
		family = "4"
	}
	switch p.Protocol {
	case "tcp":
		l, err := net.Listen("tcp"+family, p.Host.String())
		if err != nil {
			return nil, err
		}
		n.spawn(func() { n.acceptAll(l, p.Guest) })
		return func() { _ = l.Close() }, nil
	case "udp":
		c, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(p.Host))
		if err != nil {
			return nil, err
		}
		n.spawn(func() { n.receiveAll(c, p.Guest) })
		return func() { _ = c.Close() }, nil
	}
	return nil, fmt.Errorf("protocol %q is neither tcp nor udp", p.Protocol)
}

// acceptAll carries connections to a port of the guest.
func (n *Network) acceptAll(l net.Listener, port uint16) {
	accept.TCP(n.ctx, l, func(host *net.TCPConn) {
		ok := n.tcp.take() && (n.spawn(func() {
			defer n.tcp.release()
			defer func() { _ = host.Close() }()
			n.callGuest(host, port)
		}) || release(n.tcp))
		if !ok {
			reset(host)
		}
	})
}

// callGuest connects a client of a published port to the guest.
func (n *Network) callGuest(host *net.TCPConn, port uint16) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	to := netip.AddrPortFrom(n.addrs.Guest[0].Addr(), port)
	guest, err := dialGuestTCP(ctx, n.stack, to)
	if err != nil {
		reset(host)
		return
	}
	n.join(guest, host)
}

// receiveAll carries the datagrams of each client to a port of the guest, and
// the guest's answers back, from the published port.
func (n *Network) receiveAll(c *net.UDPConn, port uint16) {
	clients := clients{to: map[netip.AddrPort]guestUDP{}}
	defer func() { _ = c.Close() }()
	buf := make([]byte, maxDatagram)
	for {
		k, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // a client that has gone refuses an earlier answer
		}
		guest, ok := clients.get(from)
		if !ok {
			guest, err = dialGuestUDP(n.stack, netip.AddrPortFrom(n.addrs.Guest[0].Addr(), port))
			if err != nil {
				continue
			}
			clients.set(from, guest)
			n.carry(guest, newClient(c, from), func() { clients.drop(from, guest) })
		}
		guest.send(buf[:k])
	}
}

// clients are those of a published UDP port, of which there are at most as many
// as flows.
type clients struct {
	mu sync.Mutex
	to map[netip.AddrPort]guestUDP
}

func (cs *clients) get(a netip.AddrPort) (guestUDP, bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	g, ok := cs.to[a]
	return g, ok
}

func (cs *clients) set(a netip.AddrPort, g guestUDP) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.to[a] = g
}

// drop forgets a client's flow, unless it has another by now.
func (cs *clients) drop(a netip.AddrPort, g guestUDP) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.to[a] == g {
		delete(cs.to, a)
	}
}

// client is the way back to one client of a published UDP port.
type client struct {
	c    *net.UDPConn
	addr netip.AddrPort
	once *sync.Once
	done chan struct{}
}

func newClient(c *net.UDPConn, addr netip.AddrPort) client {
	return client{c, addr, new(sync.Once), make(chan struct{})}
}

// receive only waits for the end: receiveAll reads for all clients.
func (c client) receive(func([]byte)) error {
	<-c.done
	return net.ErrClosed
}

func (c client) send(b []byte) { _, _ = c.c.WriteToUDPAddrPort(b, c.addr) }
func (c client) close()        { c.once.Do(func() { close(c.done) }) }
