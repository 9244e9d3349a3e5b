package usernet

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/applevm/applevm/internal/echotest"
)

// withLoopback lets tests reach servers on the host whatever its network.
var withLoopback = Config{HostLoopback: true}

func TestTCP(t *testing.T) {
	g := newGuest(t, withLoopback)
	for i, family := range []string{"127.0.0.1", "::1"} {
		t.Run(family, func(t *testing.T) {
			port := echotest.Serve(t, family)
			c, err := g.dial(netip.AddrPortFrom(g.n.addrs.Host[i], port))
			if err != nil {
				t.Fatal(err)
			}
			sent := make([]byte, 3<<20)
			_, _ = rand.Read(sent)
			go func() {
				_, _ = c.Write(sent)
				_ = c.CloseWrite() // and the answer goes on
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes of %d came back: %v", len(got), len(sent), err)
			}
			if n := g.n.Counters(); n.ReceivedBytes < uint64(len(sent)) || n.SentBytes < uint64(len(sent)) || n.SentFrames == 0 || n.ReceivedFrames == 0 {
				t.Errorf("counted %+v", n)
			}
		})
	}
}

func TestUDP(t *testing.T) {
	g := newGuest(t, withLoopback)
	for i, family := range []string{"127.0.0.1", "::1"} {
		for _, size := range []int{1, 1200, 60000} {
			port := echotest.Serve(t, family)
			c := g.dialUDP(netip.AddrPortFrom(g.n.addrs.Host[i], port))
			sent := bytes.Repeat([]byte{byte(size)}, size)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, maxDatagram)
			k, err := c.Read(got)
			if err != nil || !bytes.Equal(got[:k], sent) {
				t.Errorf("%s, %d bytes: got %d: %v", family, size, k, err)
			}
		}
	}
}

func TestSmallMTU(t *testing.T) {
	g := newGuest(t, Config{HostLoopback: true, MTU: MinMTU})
	c := g.dialUDP(netip.AddrPortFrom(g.n.addrs.Host[0], echotest.Serve(t, "127.0.0.1")))
	sent := bytes.Repeat([]byte("fragments "), 900)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, maxDatagram)
	if k, err := c.Read(got); err != nil || !bytes.Equal(got[:k], sent) {
		t.Errorf("got %d bytes of %d: %v", k, len(sent), err)
	}
}

func TestRefusedConnections(t *testing.T) {
	port := echotest.Serve(t, "127.0.0.1")
	closed := func() uint16 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).AddrPort().Port()
	}()
	open, closedHost := newGuest(t, withLoopback), newGuest(t, Config{})
	for _, tt := range []struct {
		name string
		g    *guest
		to   netip.AddrPort
		says string
	}{
		{"nobody listens", open, netip.AddrPortFrom(open.n.addrs.Host[0], closed), "refused"},
		{"nobody has that address", open, netip.AddrPortFrom(open.n.addrs.Guest[0].Addr().Next(), port), "no route to host"},
		{"the gateway has no such port", open, netip.AddrPortFrom(open.n.addrs.Gateway[0], port), "refused"},
		{"the host's loopback", closedHost, netip.AddrPortFrom(closedHost.n.addrs.Host[0], port), "refused"},
		{"the host's loopback, IPv6", closedHost, netip.AddrPortFrom(closedHost.n.addrs.Host[1], port), "refused"},
		{"link-local", open, netip.MustParseAddrPort("169.254.169.254:80"), "refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if c, err := tt.g.dial(tt.to); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, %v", c, err)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	addrs, err := AddressesIn(netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		to   string
		want []string
	}{
		{"198.51.100.1", []string{"198.51.100.1:80"}},
		{"2001:db8::7", []string{"[2001:db8::7]:80"}},
		{addrs.Host[0].String(), []string{"127.0.0.1:80", "[::1]:80"}},
		{addrs.Host[1].String(), []string{"[::1]:80", "127.0.0.1:80"}},
		{addrs.Gateway[0].String(), nil},
		{addrs.Guest[0].Addr().String(), nil},
		{"192.168.127.77", nil},
		{"127.0.0.1", nil},
		{"127.255.0.1", nil},
		{"0.0.0.0", nil},
		{"0.1.2.3", nil},
		{"::", nil},
		{"::1", nil},
		{"::ffff:127.0.0.1", nil},
		{"::ffff:198.51.100.1", nil},
		{"169.254.169.254", nil},
		{"fe80::1", nil},
		{"224.0.0.251", nil},
		{"ff02::1", nil},
		{"255.255.255.255", nil},
	} {
		n := &Network{cfg: withLoopback, addrs: addrs}
		var got []string
		for _, a := range n.target(netip.AddrPortFrom(netip.MustParseAddr(tt.to), 80)) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != strings.Join(tt.want, " ") {
			t.Errorf("%s: %q, want %q", tt.to, got, tt.want)
		}
	}
	// Without its loopback the host is what others see of it, if anything.
	n := &Network{addrs: addrs}
	for _, a := range n.target(netip.AddrPortFrom(addrs.Host[0], 80)) {
		if a.Addr().IsLoopback() || !reachable(a.Addr()) {
			t.Errorf("the host is reached at %s", a)
		}
	}
}

func TestAddressesIn(t *testing.T) {
	a, err := AddressesIn(netip.MustParsePrefix("10.7.0.0/22"))
	if err != nil {
		t.Fatal(err)
	}
	if a.Gateway[0].String() != "10.7.0.1" || a.Guest[0].String() != "10.7.0.2/22" || a.Host[0].String() != "10.7.3.254" {
		t.Errorf("got %v", a)
	}
	for _, bad := range []string{"10.0.0.1/24", "10.0.0.0/30", "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/8", "fd00::/64", "169.254.0.0/16"} {
		if a, err := AddressesIn(netip.MustParsePrefix(bad)); err == nil {
			t.Errorf("%s: got %v", bad, a)
		}
	}
}

// TestTCPLimit: connections beyond the limit are refused, and its end makes room
// for another.
func TestTCPLimit(t *testing.T) {
	g := newGuest(t, Config{HostLoopback: true, Limits: Limits{TCP: 2}})
	to := netip.AddrPortFrom(g.n.addrs.Host[0], echotest.Serve(t, "127.0.0.1"))
	first, err := g.dial(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.dial(to); err != nil {
		t.Fatal(err)
	}
	if c, err := g.dial(to); err == nil {
		t.Fatalf("a third connection was made: %v", c)
	}
	_ = first.Close()
	waitFor(t, "room for another connection", func() bool {
		_, err := g.dial(to)
		return err == nil
	})
}

// TestUnreadIsAborted: a guest that does not take what was sent to it loses its
// connection once both sides have ended, not just the space in a table.
func TestUnreadIsAborted(t *testing.T) {
	g := newGuest(t, Config{HostLoopback: true, Limits: Limits{TCP: 1}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// More than the guest's window and the gateway's buffer take.
			go func() { _, _ = c.Write(make([]byte, 16<<20)); _ = c.Close() }()
		}
	}()
	to := netip.AddrPortFrom(g.n.addrs.Host[0], l.Addr().(*net.TCPAddr).AddrPort().Port())
	c, err := g.dial(to)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close() // with all of it unread
	waitFor(t, "room for another connection", func() bool {
		_, err := g.dial(to)
		return err == nil
	})
}

// TestUDPLimit: one flow more ends the one that was idle for longest.
func TestUDPLimit(t *testing.T) {
	g := newGuest(t, Config{HostLoopback: true, Limits: Limits{UDP: 8}})
	to := netip.AddrPortFrom(g.n.addrs.Host[0], echotest.Serve(t, "127.0.0.1"))
	for range 40 {
		c := g.dialUDP(to)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	g.n.flows.mu.Lock()
	defer g.n.flows.mu.Unlock()
	if n := g.n.flows.order.Len(); n != 8 {
		t.Errorf("there are %d flows", n)
	}
}

func TestPing(t *testing.T) {
	g := newGuest(t, Config{})
	for _, a := range []netip.Addr{g.n.addrs.Gateway[0], g.n.addrs.Gateway[1], g.n.addrs.Host[0], g.n.addrs.Host[1]} {
		if !g.ping(a, deadline) {
			t.Errorf("no answer from %s", a)
		}
	}
	// Nobody else of the network is there, nor anything that guests may not reach.
	for _, a := range []string{"192.168.127.77", "169.254.169.254", "fd61:7070:6c65:766d::77"} {
		if g.ping(netip.MustParseAddr(a), 300*time.Millisecond) {
			t.Errorf("%s has answered", a)
		}
	}
	for _, is4 := range []bool{true, false} {
		own := hostAddress(is4)
		if !own.IsValid() {
			t.Logf("the host has no address on the network, IPv4: %v", is4)
			continue
		}
		c, _, err := listenPing(own)
		if err != nil {
			t.Logf("this user may not ping: %v", err)
			continue
		}
		_ = c.Close()
		if !g.ping(own, deadline) {
			t.Errorf("no answer from %s", own)
		}
	}
}

// TestCloseEndsAll: nothing of a network is left, whatever it was doing.
func TestCloseEndsAll(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("use", func(t *testing.T) {
		g := newGuest(t, withLoopback)
		port := echotest.Serve(t, "127.0.0.1")
		to := netip.AddrPortFrom(g.n.addrs.Host[0], port)
		if _, err := g.dial(to); err != nil {
			t.Fatal(err)
		}
		c := g.dialUDP(to)
		_, _ = c.Write([]byte("x"))
		_, _ = c.Read(make([]byte, 1))
		for _, p := range []string{"tcp", "udp"} {
			if err := g.n.Publish(Port{p, netip.MustParseAddrPort("127.0.0.1:0"), 80}); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.n.Close(); err != nil {
			t.Error(err)
		}
		if err := g.n.Publish(Port{"tcp", netip.MustParseAddrPort("127.0.0.1:0"), 80}); err == nil {
			t.Error("a port was published after the end")
		}
	})
	waitFor(t, "all goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 64<<10)
			t.Fatalf("waited in vain for %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}
