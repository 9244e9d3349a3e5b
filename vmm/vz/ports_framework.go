//go:build (darwin && cgo) || vzsim

package vz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/Code-Hex/vz/v3"

	"github.com/applevm/applevm/vmm"
)

// dialTimeout bounds a connection to the guest: where nobody listens, the framework may
// never answer.
const dialTimeout = 10 * time.Second

// backlog is how many connections of the guest may wait to be accepted at a port.
const backlog = 128

// ports are the machine's vsock ports. One can be listened on before the machine is
// there.
type ports struct {
	mu        sync.Mutex
	device    *vz.VirtioSocketDevice // nil before the machine is built
	listeners map[uint32]*listener
	closed    bool
}

func newPorts() *ports { return &ports{listeners: map[uint32]*listener{}} }

// listener is a port that the guest can connect to. The framework's own cannot be
// accepted from any more after its end, and does not say so.
type listener struct {
	ports *ports
	port  uint32
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
	own   *vz.VirtioSocketListener
}

// attach gives the ports their device.
func (p *ports) attach(d *vz.VirtioSocketDevice) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.device = d
	for _, l := range p.listeners {
		if err := l.open(d); err != nil {
			return err
		}
	}
	return nil
}

func (p *ports) listen(port uint32) (net.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, vmm.ErrNotRunning
	}
	if p.listeners[port] != nil {
		return nil, syscall.EADDRINUSE
	}
	l := &listener{ports: p, port: port, conns: make(chan net.Conn, backlog), done: make(chan struct{})}
	if p.device != nil {
		if err := l.open(p.device); err != nil {
			return nil, err
		}
	}
	p.listeners[port] = l
	return l, nil
}

// open takes the guest's connections.
func (l *listener) open(d *vz.VirtioSocketDevice) error {
	own, err := d.Listen(l.port)
	if err != nil {
		return explain(fmt.Sprintf("vsock port %d", l.port), err)
	}
	l.own = own
	go func() {
		for {
			c, err := own.Accept() // waits for ever once the port is closed
			if err != nil {
				continue
			}
			select {
			case <-l.done:
				_ = c.Close()
				return
			case l.conns <- c:
			default:
				_ = c.Close() // nobody accepts
			}
		}
	}()
	return nil
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.ports.mu.Lock()
	delete(l.ports.listeners, l.port)
	l.ports.mu.Unlock()
	l.end()
	return nil
}

func (l *listener) end() {
	l.once.Do(func() {
		close(l.done)
		if l.own != nil {
			_ = l.own.Close()
		}
		for {
			select {
			case c := <-l.conns:
				_ = c.Close()
			default:
				return
			}
		}
	})
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr {
	return &vz.VirtioSocketListenerAddr{CID: vmm.HostCID, Port: l.port}
}

func (p *ports) close() {
	p.mu.Lock()
	listeners := p.listeners
	p.listeners, p.closed, p.device = map[uint32]*listener{}, true, nil
	p.mu.Unlock()
	for _, l := range listeners {
		l.end()
	}
}

// dial connects to a port of the guest.
func (p *ports) dial(ctx context.Context, port uint32) (net.Conn, error) {
	p.mu.Lock()
	d := p.device
	p.mu.Unlock()
	if d == nil {
		return nil, vmm.ErrNotRunning
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	type answer struct {
		c   *vz.VirtioSocketConnection
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		c, err := d.Connect(port)
		answers <- answer{c, err}
	}()
	select {
	case a := <-answers:
		if a.err != nil {
			return nil, refused(a.err)
		}
		return a.c, nil
	case <-ctx.Done():
		go func() {
			if a := <-answers; a.err == nil {
				_ = a.c.Close() // too late
			}
		}()
		return nil, ctx.Err()
	}
}

// refused tells a port where nobody listens from other failures.
func refused(err error) error {
	var ns *vz.NSError
	if errors.As(err, &ns) && ns.Domain == "NSPOSIXErrorDomain" {
		if no := syscall.Errno(ns.Code); no == syscall.ECONNREFUSED || no == syscall.ECONNRESET {
			return fmt.Errorf("%w (%s)", vmm.ErrRefused, no)
		}
	}
	return err
}
