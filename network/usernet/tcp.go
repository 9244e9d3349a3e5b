package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// dialTimeout is how long a server, or the guest, may take to accept.
	dialTimeout = 30 * time.Second
	// timeWaitTimeout is short because no old segment can linger between the
	// guest and the gateway.
	timeWaitTimeout = time.Second
	// lingerTimeout is how long a guest may take for the rest of what was sent to
	// it, after both sides have ended.
	lingerTimeout = 10 * time.Second
)

// guestConn is a TCP connection of the stack's with the guest.
type guestConn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// forwardTCP makes the connection that the guest asks for in its place. It has
// a goroutine of its own, of which there are maxDialing until the request is
// completed.
func (n *Network) forwardTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	dst := addrPort(id.LocalAddress, id.LocalPort)
	targets := n.target(dst)
	if len(targets) == 0 || !n.tcp.take() {
		r.Complete(true)
		return
	}
	if !n.spawn(func() { n.serveTCP(r, targets) }) {
		n.tcp.release()
		r.Complete(false)
	}
}

// serveTCP releases the slot that was taken for the connection.
func (n *Network) serveTCP(r *tcp.ForwarderRequest, targets []netip.AddrPort) {
	defer n.tcp.release()
	server, err := n.dialTCP(targets)
	if err != nil {
		// A server that does not answer is one to the guest too.
		r.Complete(!errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, syscall.ETIMEDOUT))
		return
	}
	defer func() { _ = server.Close() }()
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(terr != nil)
	if terr != nil {
		reset(server)
		return
	}
	n.join(guestConn{gonet.NewTCPConn(&wq, ep), ep}, server)
}

// dialTCP connects to the first target that accepts.
func (n *Network) dialTCP(targets []netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	var first error
	for _, t := range targets {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", t.String())
		if err == nil {
			return c.(*net.TCPConn), nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// dialGuestTCP connects to the guest.
func dialGuestTCP(ctx context.Context, s *stack.Stack, to netip.AddrPort) (guestConn, error) {
	var wq waiter.Queue
	ep, err := s.NewEndpoint(tcp.ProtocolNumber, protocolOf(to.Addr()), &wq)
	if err != nil {
		return guestConn{}, errors.New(err.String())
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	err = ep.Connect(fullAddress(to))
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
			err = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			return guestConn{}, ctx.Err()
		}
	}
	if err != nil {
		ep.Close()
		return guestConn{}, fmt.Errorf("connect to the guest's port %d: %s", to.Port(), err)
	}
	return guestConn{gonet.NewTCPConn(&wq, ep), ep}, nil
}

// join relays between guest and host until both have ended, and returns when
// the guest holds nothing of the host's any more.
func (n *Network) join(guest guestConn, host *net.TCPConn) {
	stop := context.AfterFunc(n.ctx, func() {
		guest.ep.Abort()
		reset(host)
	})
	defer stop()
	ep := guest.ep
	relay(&guest, host)
	_ = host.Close()
	_ = guest.Close()
	// What the guest has not acknowledged is kept for it, but not for ever.
	deadline := time.Now().Add(lingerTimeout)
	for wait := time.Millisecond; !over(ep); wait = min(2*wait, 200*time.Millisecond) {
		if time.Now().After(deadline) || n.ctx.Err() != nil {
			ep.Abort()
			return
		}
		time.Sleep(wait)
	}
}

// over tells whether an endpoint has nothing left to send.
func over(ep tcpip.Endpoint) bool {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateClose, tcp.StateError, tcp.StateTimeWait, tcp.StateInitial, tcp.StateBound:
		return true
	}
	return false
}
