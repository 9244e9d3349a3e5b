package vsock

import (
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/applevm/applevm/vmm"
)

const network = "vsock"

// backlog bounds the streams that wait for Accept.
const backlog = 128

// Addr is an address of either side.
type Addr struct {
	CID, Port uint32
}

// Network implements net.Addr.
func (Addr) Network() string { return network }

// String returns CID:port.
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// Listener accepts the guest's connections to one port of the host.
type Listener struct {
	dev     *Device
	port    uint32
	backlog chan *Conn

	mu   sync.Mutex // closing against offering
	done chan struct{}
}

// Accept waits for the next connection. It returns net.ErrClosed after the
// listener's or the machine's end.
func (l *Listener) Accept() (net.Conn, error) {
	if !isClosed(l.done) {
		select {
		case c := <-l.backlog:
			return c, nil
		case <-l.done:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: network, Addr: l.Addr(), Err: net.ErrClosed}
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return Addr{vmm.HostCID, l.port} }

// Close stops listening. Connections that nobody has accepted are reset.
func (l *Listener) Close() error {
	l.dev.mu.Lock()
	if l.dev.listeners[l.port] == l {
		delete(l.dev.listeners, l.port)
	}
	l.dev.mu.Unlock()

	l.mu.Lock()
	if isClosed(l.done) {
		l.mu.Unlock()
		return nil
	}
	close(l.done)
	l.mu.Unlock()
	for {
		select {
		case c := <-l.backlog:
			c.reset(syscall.ECONNRESET, true)
		default:
			return nil
		}
	}
}

// full is asked by the only goroutine that offers.
func (l *Listener) full() bool { return len(l.backlog) == cap(l.backlog) }

// offer puts c into the backlog if there is room.
func (l *Listener) offer(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if isClosed(l.done) {
		return false
	}
	select {
	case l.backlog <- c:
		return true
	default:
		return false
	}
}
