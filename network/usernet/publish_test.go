package usernet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"github.com/applevm/applevm/internal/echotest"
)

// freePort is a port of the host that is free for TCP and UDP.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestPublishTCP(t *testing.T) {
	g := newGuest(t, Config{})
	p := Port{"tcp", freePort(t), 80}
	if err := g.n.Publish(p); err != nil {
		t.Fatal(err)
	}
	g.listen(80, func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	c, err := net.Dial("tcp", p.Host.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(deadline))
	sent := bytes.Repeat([]byte("published "), 100000)
	go func() {
		_, _ = c.Write(sent)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d came back: %v", len(got), len(sent), err)
	}

	g.n.Unpublish(p)
	if c, err := net.Dial("tcp", p.Host.String()); err == nil {
		t.Errorf("the port is still open: %v", c)
	}
	// It can be had again.
	if err := g.n.Publish(p); err != nil {
		t.Error(err)
	}
}

func TestPublishWithoutServer(t *testing.T) {
	g := newGuest(t, Config{})
	p := Port{"tcp", freePort(t), 80}
	if err := g.n.Publish(p); err != nil {
		t.Fatal(err)
	}
	// The connection is reset, now or at the first read.
	c, err := net.Dial("tcp", p.Host.String())
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(deadline))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
}

func TestPublishUDP(t *testing.T) {
	g := newGuest(t, Config{})
	p := Port{"udp", freePort(t), 53}
	if err := g.n.Publish(p); err != nil {
		t.Fatal(err)
	}
	server, err := gonet.DialUDP(g.stack, &tcpip.FullAddress{NIC: nicID, Port: 53}, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			k, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(append([]byte("you sent "), buf[:k]...), from)
		}
	}()
	for _, client := range []string{"a", "b"} {
		c, err := net.Dial("udp", p.Host.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(deadline))
		for range 2 {
			if _, err := c.Write([]byte(client)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			if k, err := c.Read(buf); err != nil || string(buf[:k]) != "you sent "+client {
				t.Errorf("got %q, %v", buf[:k], err)
			}
		}
	}
}

func TestPublishTakenPort(t *testing.T) {
	g := newGuest(t, Config{})
	port := echotest.Serve(t, "127.0.0.1")
	for _, protocol := range []string{"tcp", "udp"} {
		p := Port{protocol, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), 80}
		if err := g.n.Publish(p); err == nil || !strings.Contains(err.Error(), "in use on the host") || !strings.Contains(err.Error(), p.Host.String()) {
			t.Errorf("%s: %v", protocol, err)
		}
	}
	foreign := Port{"tcp", netip.MustParseAddrPort("203.0.113.9:8080"), 80}
	if err := g.n.Publish(foreign); err == nil || !strings.Contains(err.Error(), "does not have this address") {
		t.Error(err)
	}
}
