package vz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/applevm/applevm/vmm"
)

// VirtioSocketDevice is a machine's vsock device.
type VirtioSocketDevice struct {
	m         vmm.Machine
	mu        sync.Mutex
	listeners []*VirtioSocketListener
}

// Listen lets the guest connect to a port.
func (v *VirtioSocketDevice) Listen(port uint32) (*VirtioSocketListener, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	l := &VirtioSocketListener{port: port, acceptch: make(chan *VirtioSocketConnection, 1)}
	if err := l.open(v.m); err != nil {
		return nil, err
	}
	v.listeners = append(v.listeners, l)
	return l, nil
}

// open takes the connections of a machine's guest.
func (v *VirtioSocketListener) open(m vmm.Machine) error {
	own, err := m.Listen(v.port)
	if err != nil {
		return err
	}
	v.own = own
	go func() {
		for {
			c, err := own.Accept()
			if err != nil {
				return // Accept of ours goes on waiting
			}
			v.acceptch <- &VirtioSocketConnection{rawConn: c}
		}
	}()
	return nil
}

// use makes the device that of another machine.
func (v *VirtioSocketDevice) use(m vmm.Machine) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.m = m
	for _, l := range v.listeners {
		_ = l.own.Close()
		if err := l.open(m); err != nil {
			return err
		}
	}
	return nil
}

// Connect connects to a port of the guest. If the guest does not answer it never returns.
func (v *VirtioSocketDevice) Connect(port uint32) (*VirtioSocketConnection, error) {
	for {
		c, err := v.m.Dial(context.Background(), port)
		switch {
		case err == nil:
			return &VirtioSocketConnection{rawConn: c}, nil
		case errors.Is(err, vmm.ErrRefused):
			return nil, &NSError{Domain: "NSPOSIXErrorDomain", Code: int(syscall.ECONNRESET), LocalizedDescription: "Connection reset by peer"}
		case errors.Is(err, context.DeadlineExceeded):
		default:
			return nil, err
		}
	}
}

// VirtioSocketListener is a port of the host.
type VirtioSocketListener struct {
	port     uint32
	own      net.Listener
	acceptch chan *VirtioSocketConnection
	once     sync.Once
}

// Accept returns the next connection. It does not notice Close.
func (v *VirtioSocketListener) Accept() (net.Conn, error) { return v.AcceptVirtioSocketConnection() }

// AcceptVirtioSocketConnection is Accept.
func (v *VirtioSocketListener) AcceptVirtioSocketConnection() (*VirtioSocketConnection, error) {
	return <-v.acceptch, nil
}

// Close closes the port.
func (v *VirtioSocketListener) Close() error {
	v.once.Do(func() { _ = v.own.Close() })
	return nil
}

// Addr returns its address.
func (v *VirtioSocketListener) Addr() net.Addr {
	return &VirtioSocketListenerAddr{CID: 2, Port: v.port}
}

// VirtioSocketListenerAddr is a listener's address.
type VirtioSocketListenerAddr struct {
	CID  uint32
	Port uint32
}

// Network returns "vsock".
func (a *VirtioSocketListenerAddr) Network() string { return "vsock" }

func (a *VirtioSocketListenerAddr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// VirtioSocketConnection is a connection. Its methods are all that it has.
type VirtioSocketConnection struct{ rawConn net.Conn }

func (v *VirtioSocketConnection) Read(b []byte) (n int, err error)  { return v.rawConn.Read(b) }
func (v *VirtioSocketConnection) Write(b []byte) (n int, err error) { return v.rawConn.Write(b) }
func (v *VirtioSocketConnection) Close() error                      { return v.rawConn.Close() }
func (v *VirtioSocketConnection) LocalAddr() net.Addr               { return v.rawConn.LocalAddr() }
func (v *VirtioSocketConnection) RemoteAddr() net.Addr              { return v.rawConn.RemoteAddr() }
func (v *VirtioSocketConnection) SetDeadline(t time.Time) error     { return v.rawConn.SetDeadline(t) }
func (v *VirtioSocketConnection) SetReadDeadline(t time.Time) error {
	return v.rawConn.SetReadDeadline(t)
}
func (v *VirtioSocketConnection) SetWriteDeadline(t time.Time) error {
	return v.rawConn.SetWriteDeadline(t)
}
