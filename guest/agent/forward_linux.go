package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/guest/stream"
)

// targetTimeout is how long the host may take to say where to.
const targetTimeout = 10 * time.Second

// ServeForward takes the host's connections to TCP ports of the machine's loopback
// addresses (api.ForwardPort), until l ends.
func ServeForward(l net.Listener) {
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
			forward(c)
		}()
	}
}

// forward connects to where the host's first frame says and carries bytes.
func forward(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(targetTimeout))
	in := stream.NewReader(c)
	var target [3]byte
	if _, err := io.ReadFull(in, target[:]); err != nil {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	addr, err := forwardTarget(target)
	if err != nil {
		return
	}
	local, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	tcp := local.(*net.TCPConn)
	defer func() { _ = tcp.Close() }()
	stream.Relay(context.Background(), c, in, stream.NewWriter(c), tcp)
	// The host closes when it has read the end.
	_ = c.SetReadDeadline(time.Now().Add(targetTimeout))
	_, _ = c.Read(make([]byte, 1))
}

func forwardTarget(t [3]byte) (string, error) {
	port := strconv.Itoa(int(binary.BigEndian.Uint16(t[1:])))
	switch t[0] {
	case api.ForwardIPv4:
		return net.JoinHostPort("127.0.0.1", port), nil
	case api.ForwardIPv6:
		return net.JoinHostPort("::1", port), nil
	}
	return "", fmt.Errorf("address family %d", t[0])
}
