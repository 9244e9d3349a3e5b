package sockets

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/guest/stream"
	"github.com/applevm/applevm/internal/accept"
	"github.com/applevm/applevm/internal/unixsocket"
)

// Publication is a socket of the container that appears on the host.
type Publication struct {
	// Host is its absolute path on the host, Container that in the container.
	Host, Container string
}

// Published are a container's published sockets.
type Published struct {
	listeners []*net.UnixListener
	targets   [][]byte
	slots     chan struct{}
	dial      func(context.Context, uint32) (net.Conn, error)

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Publish makes sockets on the host, for their user alone (mode 0600). Clients wait until
// Serve. A socket that nobody serves is replaced; anything else that is there is an error.
// max bounds the connections at a time.
func Publish(ctx context.Context, container string, list []Publication, max int) (*Published, error) {
	p := &Published{slots: make(chan struct{}, max)}
	p.ctx, p.cancel = context.WithCancel(ctx)
	for _, s := range list {
		l, err := listen(s.Host)
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("publish the container's socket %s as %s: %w", s.Container, s.Host, err)
		}
		p.listeners, p.targets = append(p.listeners, l), append(p.targets, target(container, s.Container))
	}
	return p, nil
}

// target is what tells the agent where to (api.ForwardPort).
func target(container, path string) []byte {
	to := container + "\x00" + path
	b := binary.BigEndian.AppendUint16([]byte{api.ForwardUnix}, uint16(len(to)))
	return append(b, to...)
}

func listen(path string) (*net.UnixListener, error) {
	err := unixsocket.RemoveStale(path)
	switch {
	case errors.Is(err, unixsocket.ErrNotSocket):
		return nil, fmt.Errorf("%w: choose another path, or remove it", err)
	case errors.Is(err, unixsocket.ErrServed):
		return nil, fmt.Errorf("%w: choose another path, or end it", err)
	case err != nil:
		return nil, err
	}
	// Until the mode is set, the shim's umask keeps others from it: to connect takes the
	// right to write.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.SetUnlinkOnClose(false) // it may be another's by then
	return l, nil
}

// Serve carries clients to the container, with connections that dial makes to a vsock port of
// the guest, until Close.
func (p *Published) Serve(dial func(context.Context, uint32) (net.Conn, error)) {
	p.dial = dial
	for i, l := range p.listeners {
		accept.Bounded(p.ctx, &p.wg, l, p.slots, func(client net.Conn) { p.carry(client.(*net.UnixConn), p.targets[i]) })
	}
}

func (p *Published) carry(client *net.UnixConn, target []byte) {
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	guest, err := p.dial(ctx, api.ForwardPort)
	if err != nil {
		return
	}
	defer func() { _ = guest.Close() }()
	defer context.AfterFunc(p.ctx, func() { _ = guest.Close() })()
	out := stream.NewWriter(guest)
	if _, err := out.Write(target); err != nil {
		return
	}
	stream.Relay(p.ctx, guest, stream.NewReader(guest), out, client)
}

// Close removes the sockets and ends their connections.
func (p *Published) Close() {
	p.cancel()
	for _, l := range p.listeners {
		_ = l.Close()
		_ = unixsocket.RemoveStale(l.Addr().String())
	}
	p.wg.Wait()
}
