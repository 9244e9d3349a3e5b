// Package sockets carries unix sockets between the host and a container: sockets of the host
// that the container mounts, and sockets of the container that are published on the host.
// Bytes go through, files (SCM_RIGHTS) cannot.
package sockets

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/applevm/applevm/guest/stream"
	"github.com/applevm/applevm/internal/accept"
)

// timeout is how long either end of a new connection may take to say or do what comes first.
const timeout = 10 * time.Second

// Shared are sockets of the host that a container mounts. The guest names one by its number
// and can reach no other.
type Shared struct {
	sockets []socket
	slots   chan struct{}

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// socket is found by its name in its directory, so that one that its server makes anew is
// found too.
type socket struct {
	dir  *os.File
	name string
}

// Share opens the directories of sockets, which are numbered as in paths. max bounds the
// connections at a time.
func Share(ctx context.Context, paths []string, max int) (*Shared, error) {
	s := &Shared{slots: make(chan struct{}, max)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	for _, path := range paths {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			var dir *os.File
			if dir, err = openDir(filepath.Dir(real)); err == nil {
				s.sockets = append(s.sockets, socket{dir, filepath.Base(real)})
			}
		}
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("share the socket %s: %w", path, err)
		}
	}
	return s, nil
}

// Serve begins to take the guest's connections, until l ends or Close, which closes it.
func (s *Shared) Serve(l net.Listener) {
	context.AfterFunc(s.ctx, func() { _ = l.Close() })
	accept.Bounded(s.ctx, &s.wg, l, s.slots, s.carry)
}

// carry connects the guest to the socket that its first frame names.
func (s *Shared) carry(guest net.Conn) {
	defer context.AfterFunc(s.ctx, func() { _ = guest.Close() })()
	_ = guest.SetReadDeadline(time.Now().Add(timeout))
	in := stream.NewReader(guest)
	var number [2]byte
	if _, err := io.ReadFull(in, number[:]); err != nil {
		return
	}
	_ = guest.SetReadDeadline(time.Time{})
	i := int(binary.BigEndian.Uint16(number[:]))
	if i >= len(s.sockets) {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	host, err := s.sockets[i].dial(ctx)
	if err != nil {
		return
	}
	defer func() { _ = host.Close() }()
	stream.Relay(s.ctx, guest, in, stream.NewWriter(guest), host.(*net.UnixConn))
}

// Close ends all connections.
func (s *Shared) Close() {
	s.cancel()
	s.wg.Wait()
	for _, k := range s.sockets {
		_ = k.dir.Close()
	}
}
