package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// cable joins two network namespaces by interfaces called eth0, with the addresses
// 10.9.0.2 and fd09::2 here and 10.9.0.1 and fd09::1 there.
func cable(t *testing.T, here, there netNS) {
	t.Helper()
	up := func(ns netNS, number int) func() error {
		return func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			for _, text := range []string{"10.9.0.%d/24", "fd09::%d/64"} {
				a, err := netlink.ParseAddr(fmt.Sprintf(text, number))
				if err != nil {
					return err
				}
				a.Flags = syscall.IFA_F_NODAD
				if err := netlink.AddrAdd(l, a); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(l)
		}
	}
	err := here.do(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(there.h))})
	})
	if err := errors.Join(err, here.do(t, up(here, 2)), there.do(t, up(there, 1))); err != nil {
		t.Fatal(err)
	}
}

// TestNetworkNamespaceByPath: a network namespace that the client has made, as CRI
// does: the container has its interface, with its addresses, and leaves it as it was.
func TestNetworkNamespaceByPath(t *testing.T) {
	s := rootStack(t)
	t.Cleanup(func() { clean(t, s) }) // when the container is removed
	ns, outside := newNetNS(t), newNetNS(t)
	cable(t, ns, outside)
	var l net.Listener
	if err := outside.do(t, func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello "+c.RemoteAddr().(*net.TCPAddr).IP.String())
			_ = c.Close()
		}
	}()
	flags := []string{"--with-ns", "network:" + ns.path()}
	id := background(t, s, flags, "sleep", "1000")
	got := must(t, s.CtrExec(t.Context(), "--exec-id", "e", id, "bash", "-c", "cat </dev/tcp/10.9.0.1/80; echo; cat </dev/tcp/fd09::1/80; echo; ls /sys/class/net"))
	if want := "hello 10.9.0.2\nhello fd09::2\neth0\nlo\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	t.Run("a second container", func(t *testing.T) {
		r := do(t, s.CtrRun(t.Context(), append(append([]string{"--rm"}, flags...), img, "second", "echo", "it ran")...))
		if r.code == 0 || strings.Contains(r.stdout, "it ran") || !strings.Contains(r.stderr, "it is the network of another container") {
			t.Error(r)
		}
	})
	for _, p := range s.Shims() {
		if strings.Contains(strings.Join(p.Args, " "), id) {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
	waitFor(t, "the interface to be its namespace's again", func() bool {
		got, _ := ns.fetch(t, "10.9.0.1:80")
		return got == "hello 10.9.0.2"
	})
	t.Run("nerdctl", func(t *testing.T) {
		t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", "ns").Run() })
		out := must(t, s.Nerdctl(t.Context(), "run", "--runtime", "io.containerd.applevm.v1", "--rm", "--name", "ns", "--net", "ns:"+ns.path(), img, "bash", "-c", "cat </dev/tcp/10.9.0.1/80"))
		if out != "hello 10.9.0.2" {
			t.Errorf("got %q", out)
		}
	})
	if got, err := ns.fetch(t, "10.9.0.1:80"); got != "hello 10.9.0.2" {
		t.Errorf("the interface is not as it was: %q, %v", got, err)
	}
	t.Run("the host's own", func(t *testing.T) {
		r := do(t, s.CtrRun(t.Context(), "--rm", "--with-ns", fmt.Sprintf("network:/proc/%d/ns/net", os.Getppid()), img, "host", "true"))
		if r.code == 0 || !strings.Contains(r.stderr, "it is the host's own: use --net=host") {
			t.Error(r)
		}
		_ = do(t, s.Ctr(t.Context(), "container", "delete", "host"))
	})
}
