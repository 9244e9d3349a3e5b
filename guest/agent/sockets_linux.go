package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/guest/stream"
	"github.com/applevm/applevm/internal/accept"
)

// sockets are the sockets of the host that a container mounts. Each is a socket in the
// machine, whose clients are carried to the host's.
type sockets struct {
	ctx       context.Context
	cancel    context.CancelFunc
	listeners map[uint16]*net.UnixListener
	slots     chan struct{}
	wg        sync.WaitGroup
}

// socketMount is what the source of a mount of the type api.SocketMount says.
type socketMount struct {
	number   uint16
	mode     os.FileMode
	uid, gid uint32
}

func parseSocketMount(source string) (m socketMount, err error) {
	f := strings.Split(source, ":")
	if len(f) != 4 {
		return m, invalid("%q is no socket of the host", source)
	}
	var v [4]uint64
	for i := range f {
		if v[i], err = strconv.ParseUint(f[i], []int{10, 8, 10, 10}[i], 32); err != nil {
			return m, invalid("%q is no socket of the host: %w", source, err)
		}
	}
	if v[0] >= api.MaxSockets || v[1] > 0o777 {
		return m, invalid("%q is no socket of the host", source)
	}
	return socketMount{uint16(v[0]), os.FileMode(v[1]), uint32(v[2]), uint32(v[3])}, nil
}

// mountSockets makes the sockets that the spec's mounts ask for, and makes these binds of them.
func (c *container) mountSockets(spec *specs.Spec) error {
	dir := filepath.Join(c.dir, "sockets")
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if m.Type != api.SocketMount {
			continue
		}
		s, err := parseSocketMount(m.Source)
		if err != nil {
			return err
		}
		if c.sockets == nil {
			c.sockets = &sockets{listeners: map[uint16]*net.UnixListener{}, slots: make(chan struct{}, api.MaxForwarded)}
			c.sockets.ctx, c.sockets.cancel = context.WithCancel(context.Background())
			if err := os.Mkdir(dir, 0o711); err != nil {
				return err
			}
		}
		path := filepath.Join(dir, strconv.Itoa(int(s.number)))
		if c.sockets.listeners[s.number] == nil {
			if err := c.listenSocket(s, path); err != nil {
				return err
			}
		}
		makeBind(m, path)
	}
	return nil
}

func (c *container) listenSocket(s socketMount, path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	// By way of the directory: an address has no room for a long path.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // it goes with its directory
	c.sockets.listeners[s.number] = l
	uid, gid := c.ids.of(s.uid, s.gid)
	if err := errors.Join(os.Chown(path, uid, gid), os.Chmod(path, s.mode)); err != nil {
		return err
	}
	accept.Bounded(c.sockets.ctx, &c.sockets.wg, l, c.sockets.slots, func(client net.Conn) {
		c.carrySocket(client.(*net.UnixConn), s.number)
	})
	return nil
}

// carrySocket connects a client to a socket of the host.
func (c *container) carrySocket(client *net.UnixConn, number uint16) {
	ctx, cancel := context.WithTimeout(c.sockets.ctx, targetTimeout)
	defer cancel()
	host, err := c.agent.opts.DialSocket(ctx)
	if err != nil {
		return
	}
	defer func() { _ = host.Close() }()
	defer context.AfterFunc(c.sockets.ctx, func() { _ = host.Close() })()
	out := stream.NewWriter(host)
	if _, err := out.Write(binary.BigEndian.AppendUint16(nil, number)); err != nil {
		return
	}
	stream.Relay(c.sockets.ctx, host, stream.NewReader(host), out, client)
	// The host closes when it has read the end.
	_ = host.SetReadDeadline(time.Now().Add(targetTimeout))
	_, _ = host.Read(make([]byte, 1))
}

// close ends the sockets and their connections. There may be none.
func (s *sockets) close() {
	if s == nil {
		return
	}
	s.cancel()
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.wg.Wait()
}
