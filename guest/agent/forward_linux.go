package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/guest/stream"
)

// targetTimeout is how long the host may take to say where to.
const targetTimeout = 10 * time.Second

// ServeForward takes the host's connections to TCP ports of the machine's loopback
// addresses and to sockets of its containers (api.ForwardPort), until l ends.
func (a *Agent) ServeForward(l net.Listener) {
	slots := make(chan struct{}, api.MaxForwarded)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			logrus.Errorf("accept a connection to forward: %v", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		go func() {
			defer func() { <-slots }()
			defer func() { _ = c.Close() }()
			a.forward(c)
		}()
	}
}

// forward connects to where the host's first frame says and carries bytes.
func (a *Agent) forward(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(targetTimeout))
	in := stream.NewReader(c)
	var target [3]byte
	if _, err := io.ReadFull(in, target[:]); err != nil {
		return
	}
	local, err := a.dialTarget(target, in)
	if err != nil {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	defer func() { _ = local.Close() }()
	stream.Relay(context.Background(), c, in, stream.NewWriter(c), local)
	// The host closes when it has read the end.
	_ = c.SetReadDeadline(time.Now().Add(targetTimeout))
	_, _ = c.Read(make([]byte, 1))
}

// dialTarget connects to a target, which begins with these bytes and goes on in the
// host's.
func (a *Agent) dialTarget(t [3]byte, rest io.Reader) (stream.Duplex, error) {
	number := binary.BigEndian.Uint16(t[1:])
	host := ""
	switch t[0] {
	case api.ForwardIPv4:
		host = "127.0.0.1"
	case api.ForwardIPv6:
		host = "::1"
	case api.ForwardUnix:
		return a.dialUnix(int(number), rest)
	default:
		return nil, fmt.Errorf("target of kind %d", t[0])
	}
	c, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(int(number))))
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// dialUnix connects to a container's socket, by its path as the container sees it.
func (a *Agent) dialUnix(length int, rest io.Reader) (stream.Duplex, error) {
	if length > api.MaxSocketTarget {
		return nil, fmt.Errorf("target of %d bytes", length)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(rest, b); err != nil {
		return nil, err
	}
	id, name, _ := strings.Cut(string(b), "\x00")
	c, err := a.container(id)
	if err != nil {
		return nil, err
	}
	fd, err := resolveIn(c.root(), name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	// It is this file that is connected to, whatever its path leads to by now.
	conn, err := net.DialTimeout("unix", fmt.Sprintf("/proc/self/fd/%d", fd), targetTimeout)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
