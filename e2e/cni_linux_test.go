package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/applevm/applevm/e2e/stack"
)

// netNS is a network namespace of the test's own: bridges and packet filters of
// the clients under test are made there, not on the host.
type netNS struct{ h netns.NsHandle }

func newNetNS(t *testing.T) netNS {
	t.Helper()
	result := make(chan error)
	var h netns.NsHandle
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		var err error
		if h, err = netns.New(); err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		result <- err
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return netNS{h}
}

func (n netNS) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.h)) }

// do calls f in the namespace.
func (n netNS) do(t *testing.T, f func() error) error {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(n.h); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// fetch connects to an address in the namespace and reads all.
func (n netNS) fetch(t *testing.T, addr string) (got string, err error) {
	err = n.do(t, func() error {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		b, err := io.ReadAll(c)
		got = string(b)
		return err
	})
	return got, err
}

// cniStack is a stack in a network namespace of its own, for nerdctl's networks.
func cniStack(t *testing.T) (*stack.Stack, netNS) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("nerdctl's networks need root: run this with sudo")
	}
	// Where plugins keep their state, whatever nerdctl's data directory is.
	if _, err := os.Stat("/var/lib/cni"); os.IsNotExist(err) {
		t.Cleanup(func() { _ = os.RemoveAll("/var/lib/cni") })
	}
	ns := newNetNS(t)
	s := newStack(t, stack.Options{NetNS: ns.path()})
	return s, ns
}

// greeter is a server that says who calls.
const greeter = `use IO::Socket::INET; my $l = IO::Socket::INET->new(LocalPort => 80, Listen => 5) or die; while (my $c = $l->accept) { print $c "hello ", $c->peerhost; close $c }`

// TestNerdctlBridge: nerdctl's own networks, made by CNI plugins.
func TestNerdctlBridge(t *testing.T) {
	s, ns := cniStack(t)
	ctx := t.Context()
	run := func(args ...string) *exec.Cmd {
		return s.Nerdctl(ctx, append([]string{"run", "--runtime", "io.containerd.applevm.v1"}, args...)...)
	}
	rm := func(ids ...string) {
		_ = s.Nerdctl(context.Background(), append([]string{"rm", "-f"}, ids...)...).Run()
	}
	t.Cleanup(func() { rm("web") })
	must(t, run("-d", "--name", "web", "-p", "8080:80", "--mac-address", "02:00:00:00:12:34", "--ip", "10.4.0.77",
		"--add-host", "db:10.1.2.3", "--dns", "10.9.9.9", img, "perl", "-e", greeter))

	t.Run("inside", func(t *testing.T) {
		got := must(t, s.Nerdctl(ctx, "exec", "web", "sh", "-c",
			"cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /proc/net/route; grep -c 10.4.0.77 /proc/net/fib_trie; getent hosts db; cat /etc/resolv.conf; hostname -i"))
		for _, want := range []string{"02:00:00:00:12:34\n1500\n", "eth0\t00000000\t0100040A", "10.1.2.3", "nameserver 10.9.9.9", "10.4.0.77"} {
			if !strings.Contains(got, want) {
				t.Errorf("%q is not in\n%s", want, got)
			}
		}
	})
	t.Run("published port", func(t *testing.T) {
		var got string
		waitFor(t, "an answer from the published port", func() bool {
			got, _ = ns.fetch(t, "10.4.0.1:8080")
			return strings.HasPrefix(got, "hello 10.4.0.1")
		})
		if got, err := ns.fetch(t, "127.0.0.1:8080"); err != nil || !strings.HasPrefix(got, "hello ") {
			t.Errorf("by loopback: %q, %v", got, err)
		}
		if got, err := ns.fetch(t, "10.4.0.77:80"); err != nil || got != "hello 10.4.0.1" {
			t.Errorf("by its address: %q, %v", got, err)
		}
	})
	t.Run("what nerdctl shows", func(t *testing.T) {
		if out := must(t, s.Nerdctl(ctx, "port", "web")); out != "80/tcp -> 0.0.0.0:8080\n" {
			t.Errorf("port: %q", out)
		}
		if out := must(t, s.Nerdctl(ctx, "inspect", "--format", "{{.NetworkSettings.IPAddress}} {{.NetworkSettings.MacAddress}}", "web")); out != "10.4.0.77 02:00:00:00:12:34\n" {
			t.Errorf("inspect: %q", out)
		}
	})
	t.Run("another container", func(t *testing.T) {
		out := must(t, run("--rm", img, "bash", "-c", "exec 3<>/dev/tcp/10.4.0.77/80 && cat <&3; echo; hostname -i"))
		greeting, own, _ := strings.Cut(strings.TrimSpace(out), "\n")
		a, err := netip.ParseAddr(strings.TrimSpace(own))
		if err != nil || greeting != "hello "+a.String() || !netip.MustParsePrefix("10.4.0.0/24").Contains(a) {
			t.Errorf("got %q", out)
		}
	})
	t.Run("a taken port", func(t *testing.T) {
		r := do(t, run("--name", "second", "-p", "8080:80", img, "echo", "it ran"))
		if r.code == 0 || strings.Contains(r.stdout, "it ran") {
			t.Error(r)
		}
		rm("second")
	})
	t.Run("another container's network", func(t *testing.T) {
		r := do(t, run("--rm", "--net", "container:web", img, "true"))
		if r.code == 0 || !strings.Contains(r.stderr, "cannot be joined: each has a machine of its own") {
			t.Error(r)
		}
	})
	t.Run("networks of one's own", func(t *testing.T) {
		must(t, s.Nerdctl(ctx, "network", "create", "--subnet", "10.77.0.0/24", "blue"))
		out := must(t, run("--rm", "--net", "bridge", "--net", "blue", img, "sh", "-c", "ls /sys/class/net; hostname -I"))
		for _, want := range []string{"eth0\neth1\n", "10.4.0.", "10.77.0."} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in %q", want, out)
			}
		}
		must(t, s.Nerdctl(ctx, "network", "rm", "blue"))
	})
	must(t, s.Nerdctl(ctx, "stop", "-t", "1", "web"))
	must(t, s.Nerdctl(ctx, "start", "web"))
	waitFor(t, "an answer after a restart", func() bool {
		got, _ := ns.fetch(t, "10.4.0.77:80")
		return got == "hello 10.4.0.1"
	})
	must(t, s.Nerdctl(ctx, "rm", "-f", "web"))
	// Nothing of them is left in the namespace but the bridges.
	waitFor(t, "all interfaces of containers to go", func() bool {
		h, err := netlink.NewHandleAt(ns.h)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		links, err := h.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if l.Type() == "veth" {
				return false
			}
		}
		return true
	})
	if got, err := ns.fetch(t, "10.4.0.1:8080"); err == nil {
		t.Errorf("the port outlives its container: %q", got)
	}
	clean(t, s)
}
