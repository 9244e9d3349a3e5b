package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/guest/stream"
)

func keys(list []*guestv1.Listener) []string {
	var out []string
	for _, l := range list {
		out = append(out, listenerKey(l))
	}
	return out
}

func TestReadListeners(t *testing.T) {
	const heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	for _, tt := range []struct {
		protocol, text string
		want           []string
	}{
		{"tcp", "", nil},
		{"tcp", heading +
			"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n" +
			"   1: 00000000:0050 00000000:0000 0A 0\n" +
			"   2: 0100007F:1F90 0100007F:8888 01 0\n" +
			"   3: 00000000:0051 00000000:0000 0A 0\n", // never there, and not read
			[]string{"tcp 08080 7f000001", "tcp 00080 00000000"}},
		{"tcp", heading + "   0: 00000000000000000000000001000000:01BB 00000000000000000000000000000000:0000 0A 0\n",
			[]string{"tcp 00443 00000000000000000000000000000001"}},
		{"udp", heading + "   0: 0100007F:1F90 0100007F:8888 01 0\n   1: 00000000:0035 00000000:0000 07 0\n", []string{"udp 00053 00000000"}},
	} {
		got, err := readListeners(strings.NewReader(tt.text), tt.protocol)
		if err != nil || !slices.Equal(keys(got), tt.want) {
			t.Errorf("%q: %q, %v, want %q", tt.text, keys(got), err, tt.want)
		}
	}
	for _, bad := range []string{"0: x", "0: 0100007F 0:0 0A", "0: 0100:1F90 0:0 0A", "0: 0100007F:FFFFF 0:0 0A"} {
		if got, err := readListeners(strings.NewReader(heading+bad), "tcp"); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// TestWaitListeners looks at sockets of this process.
func TestWaitListeners(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	want := fmt.Sprintf("tcp %05d 7f000001", l.Addr().(*net.TCPAddr).Port)
	first, err := waitListeners(t.Context(), "/proc/net", "")
	if err != nil || !slices.Contains(keys(first.Listeners), want) {
		t.Fatalf("%q is not in %q, %v", want, keys(first.GetListeners()), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_ = l.Close()
	for known := first.Digest; ; {
		r, err := waitListeners(ctx, "/proc/net", known) // others of the machine may change too
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(keys(r.Listeners), want) {
			return
		}
		known = r.Digest
	}
}

func TestForward(t *testing.T) {
	// The tests have a network namespace of their own.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go new(Agent).ServeForward(l)
	t.Cleanup(func() { _ = l.Close() })
	for i, addr := range []string{"127.0.0.1", "::1"} {
		server, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		go func() {
			c, err := server.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c) // until the client's end
			_, _ = fmt.Fprintf(c, "you sent %d", len(b))
			_ = c.Close()
		}()
		port := server.Addr().(*net.TCPAddr).Port
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
		w := stream.NewWriter(c)
		_, err = w.Write([]byte{[]byte{api.ForwardIPv4, api.ForwardIPv6}[i], byte(port >> 8), byte(port)})
		if _, werr := w.Write(make([]byte, 300000)); errors.Join(err, werr, w.Close()) != nil {
			t.Fatal(err, werr)
		}
		if b, err := io.ReadAll(stream.NewReader(c)); err != nil || string(b) != "you sent 300000" {
			t.Errorf("%s: %q, %v", addr, b, err)
		}
		// Nobody listens any more.
		_ = server.Close()
		c2, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c2.Close() })
		_ = c2.SetDeadline(time.Now().Add(2 * time.Minute))
		_, _ = stream.NewWriter(c2).Write([]byte{[]byte{api.ForwardIPv4, api.ForwardIPv6}[i], byte(port >> 8), byte(port)})
		if b, err := io.ReadAll(c2); len(b) > 0 {
			t.Errorf("%s: without a server: %q, %v", addr, b, err)
		}
	}
}
