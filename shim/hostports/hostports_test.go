package hostports

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/guest/stream"
)

const deadline = 2 * time.Minute

func listener(protocol, addr string, port uint32) *guestv1.Listener {
	a := netip.MustParseAddr(addr)
	return &guestv1.Listener{Protocol: protocol, Address: a.AsSlice(), Port: port}
}

func TestTargets(t *testing.T) {
	for _, tt := range []struct {
		l    *guestv1.Listener
		want string
	}{
		{listener("tcp", "0.0.0.0", 80), "tcp 127.0.0.1:80"},
		{listener("tcp", "127.0.0.1", 80), "tcp 127.0.0.1:80"},
		{listener("tcp", "127.0.0.53", 80), "tcp 127.0.0.1:80"},
		{listener("tcp", "192.168.127.2", 80), "tcp 127.0.0.1:80"},
		{listener("tcp", "::", 80), "tcp 127.0.0.1:80 tcp [::1]:80"},
		{listener("tcp", "::1", 80), "tcp [::1]:80"},
		{listener("tcp", "::ffff:127.0.0.1", 80), "tcp 127.0.0.1:80"},
		{listener("udp", "0.0.0.0", 80), "udp 127.0.0.1:80"},
		{listener("udp", "127.0.0.1", 80), ""},
		// What no kernel says, but a guest may.
		{listener("tcp", "224.0.0.1", 80), ""},
		{listener("tcp", "0.0.0.0", 0), ""},
		{listener("tcp", "0.0.0.0", 65536+80), ""},
		{&guestv1.Listener{Protocol: "tcp", Address: []byte{1, 2, 3}, Port: 80}, ""},
	} {
		var got []string
		for _, t := range targets(tt.l) {
			got = append(got, t.protocol+" "+t.host.String())
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%v: %q, want %q", tt.l, s, tt.want)
		}
	}
}

// agentOf answers like the agent whose machine's loopback says who was called.
func agentOf(t *testing.T) func(context.Context, uint32) (net.Conn, error) {
	return func(_ context.Context, port uint32) (net.Conn, error) {
		if port != api.ForwardPort {
			t.Errorf("vsock port %d was dialed", port)
		}
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			in, out := stream.NewReader(theirs), stream.NewWriter(theirs)
			var target [3]byte
			if _, err := io.ReadFull(in, target[:]); err != nil {
				t.Error(err)
				return
			}
			b, err := io.ReadAll(in)
			if err != nil {
				return // the client was reset
			}
			if string(b) == "refuse" {
				return
			}
			_, err = out.Write(append([]byte{'0' + target[0], ' '}, b...))
			if err := errors.Join(err, out.Close()); err != nil {
				t.Error(err)
			}
			_, _ = theirs.Read(make([]byte, 1))
		}()
		return ours, nil
	}
}

func ask(addr, text string) (string, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(deadline))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	_ = c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestPortsComeAndGo(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint32(free.Addr().(*net.TCPAddr).Port)
	addr := free.Addr().String()
	p := New(t.Context(), Options{Dial: agentOf(t), MaxConnections: 8})
	var logged []string
	p.log = func(format string, _ ...any) { logged = append(logged, format) }

	// One that the host uses is told of, once.
	list := []*guestv1.Listener{listener("tcp", "0.0.0.0", port)}
	p.Set(list)
	p.Set(list)
	if len(logged) != 1 || len(p.open) != 0 {
		t.Errorf("%d messages, open %v", len(logged), p.open)
	}
	_ = free.Close()
	p.Set(list)
	if got, err := ask(addr, "hello"); err != nil || got != "4 hello" {
		t.Errorf("got %q, %v", got, err)
	}
	big := strings.Repeat("x", 1<<20)
	if got, err := ask(addr, big); err != nil || got != "4 "+big {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if got, err := ask(addr, "refuse"); err == nil {
		t.Errorf("a refused connection ended in order: %q", got)
	}
	p.Set(nil)
	if got, err := ask(addr, "hello"); err == nil {
		t.Errorf("the port is still open: %q", got)
	}
	p.Set(list)
	if got, err := ask(addr, "again"); err != nil || got != "4 again" {
		t.Errorf("got %q, %v", got, err)
	}
	p.Close()
	if got, err := ask(addr, "hello"); err == nil {
		t.Errorf("the port outlives Close: %q", got)
	}
}

// TestTooManyPorts: a guest that claims to listen everywhere gets Max ports.
func TestTooManyPorts(t *testing.T) {
	p := New(t.Context(), Options{Dial: agentOf(t), MaxConnections: 1})
	p.log = func(string, ...any) {}
	defer p.Close()
	var list []*guestv1.Listener
	for port := uint32(20000); port < 22000; port++ {
		list = append(list, listener("tcp", "127.0.0.1", port))
	}
	p.Set(list)
	if len(p.open)+len(p.fails) != Max {
		t.Errorf("%d ports are open, %d are not", len(p.open), len(p.fails))
	}
}
