//go:build unix

package usernet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// maxDatagram is the longest UDP payload, in bytes.
const maxDatagram = 65507

// datagrams are buffers for one datagram each, of which there are as many as are
// being carried, not as many as there are flows.
var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// datagramConn is a connected datagram socket.
type datagramConn interface {
	// receive waits for a datagram and gives it to f, which must not keep it. It
	// fails when the socket has ended; a peer's refusal is no end.
	receive(f func([]byte)) error
	// send sends a datagram. It does not tell whether that arrived.
	send(b []byte)
	close()
}

// hostUDP is a socket of the host.
type hostUDP struct{ c *net.UDPConn }

func dialHostUDP(to netip.AddrPort) (hostUDP, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	return hostUDP{c}, err
}

func (h hostUDP) receive(f func([]byte)) error {
	raw, err := h.c.SyscallConn()
	if err != nil {
		return err
	}
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		buf := datagrams.Get().(*[maxDatagram]byte)
		defer datagrams.Put(buf)
		n, err := unix.Read(int(fd), buf[:])
		switch {
		case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
			return false
		case errors.Is(err, syscall.ECONNREFUSED):
		case err != nil:
			rerr = err
		default:
			f(buf[:n])
		}
		return true
	})
	return errors.Join(err, rerr)
}

func (h hostUDP) send(b []byte) { _, _ = h.c.Write(b) }
func (h hostUDP) close()        { _ = h.c.Close() }

// guestUDP is a socket of the stack.
type guestUDP struct {
	ep tcpip.Endpoint
	wq *waiter.Queue
}

func dialGuestUDP(s *stack.Stack, to netip.AddrPort) (guestUDP, error) {
	wq := new(waiter.Queue)
	ep, err := s.NewEndpoint(udp.ProtocolNumber, protocolOf(to.Addr()), wq)
	if err != nil {
		return guestUDP{}, errors.New(err.String())
	}
	if err := ep.Connect(fullAddress(to)); err != nil {
		ep.Close()
		return guestUDP{}, fmt.Errorf("connect to %s: %s", to, err)
	}
	return guestUDP{ep, wq}, nil
}

func (g guestUDP) receive(f func([]byte)) error {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	g.wq.EventRegister(&entry)
	defer g.wq.EventUnregister(&entry)
	for {
		err := g.read(f)
		switch err.(type) {
		case nil, *tcpip.ErrConnectionRefused:
			return nil
		case *tcpip.ErrWouldBlock:
			<-ready
		case *tcpip.ErrClosedForReceive:
			return io.EOF
		default:
			return errors.New(err.String())
		}
	}
}

func (g guestUDP) read(f func([]byte)) tcpip.Error {
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	w := tcpip.SliceWriter(buf[:])
	res, err := g.ep.Read(&w, tcpip.ReadOptions{})
	if err == nil {
		f(buf[:res.Count])
	}
	return err
}

func (g guestUDP) send(b []byte) { _, _ = g.ep.Write(bytes.NewReader(b), tcpip.WriteOptions{}) }
func (g guestUDP) close()        { g.ep.Close() }
