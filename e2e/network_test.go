package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/stack"
	"github.com/applevm/applevm/internal/echotest"
)

// loopbackConfig lets containers reach the test's own servers.
const loopbackConfig = "[network]\nhost_loopback = true\n"

// freePort is a port of the host on which nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// servicePort is a port, free for TCP and UDP, that is none of those which Linux
// gives to clients (net.ipv4.ip_local_port_range).
func servicePort(t *testing.T) string {
	t.Helper()
	for range 50 {
		at := net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(10000)))
		l, err := net.Listen("tcp", at)
		if err != nil {
			continue
		}
		u, uerr := net.ListenPacket("udp", at)
		_ = l.Close()
		if uerr == nil {
			_ = u.Close()
			_, port, _ := net.SplitHostPort(at)
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// TestUserNetwork runs as an ordinary user and, but for macOS's driver, as root.
func TestUserNetwork(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts stack.Options
	}{
		{"ordinary user", stack.Options{Unprivileged: true, Config: loopbackConfig}},
		{"root", stack.Options{Config: loopbackConfig}},
	} {
		if withVZ() && !tt.opts.Unprivileged {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			s := newStack(t, tt.opts)
			id := background(t, s, nil, "sleep", "1000")
			in := func(script string) string {
				t.Helper()
				r := do(t, s.CtrExec(t.Context(), "--exec-id", fmt.Sprint("e", time.Now().UnixNano()), id, "bash", "-c", script))
				if r.code != 0 {
					t.Errorf("%s: %s", script, r)
				}
				return r.stdout
			}
			t.Run("addresses", func(t *testing.T) {
				got := in("cat /proc/net/route /proc/net/if_inet6 /proc/net/ipv6_route /sys/class/net/eth0/mtu")
				for _, want := range []string{
					"eth0\t00000000\t017FA8C0", "\n65520\n",
					"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd6170706c65766d0000000000000001",
				} {
					if !strings.Contains(strings.ReplaceAll(got, "    ", " "), want) && !strings.Contains(got, want) {
						t.Errorf("%q is not in\n%s", want, got)
					}
				}
				// The interface's number is the kernel's choice, the prefix's length (64) is ours.
				if !regexp.MustCompile(`(?m)^fd6170706c65766d0000000000000002 0\d 40 .* eth0$`).MatchString(got) {
					t.Errorf("no address with a prefix of 64 bits in\n%s", got)
				}
			})
			t.Run("names", func(t *testing.T) {
				got := in("cat /etc/hostname; getent ahostsv4 host.applevm.internal | head -1; getent hosts $(cat /etc/hostname) >/dev/null && echo itself; head -1 /etc/resolv.conf")
				if want := id + "\n192.168.127.254"; !strings.HasPrefix(got, want) || !strings.Contains(got, "itself\nnameserver 192.168.127.1\n") {
					t.Errorf("got %q", got)
				}
			})
			for i, addr := range []string{"127.0.0.1", "::1"} {
				port := echotest.Serve(t, addr)
				host := []string{"192.168.127.254", "fd61:7070:6c65:766d::fe"}[i]
				for _, protocol := range []string{"tcp", "udp"} {
					t.Run(protocol+" to "+addr, func(t *testing.T) {
						got := in(fmt.Sprintf("exec 3<>/dev/%s/%s/%d && echo hello %s >&3 && timeout 60 head -n 1 <&3", protocol, host, port, protocol))
						if want := "hello " + protocol + "\n"; got != want {
							t.Errorf("got %q, want %q", got, want)
						}
					})
				}
			}
			t.Run("refused", func(t *testing.T) {
				port := freePort(t)
				if got := in("(exec 3<>/dev/tcp/192.168.127.254/" + port + ") 2>&1 | grep -o -m1 refused | head -n1"); got != "refused\n" {
					t.Errorf("got %q", got)
				}
			})
			t.Run("a lot", func(t *testing.T) {
				port := echotest.Serve(t, "127.0.0.1")
				got := in(fmt.Sprintf("exec 3<>/dev/tcp/192.168.127.254/%d; (head -c 20000000 /dev/zero >&3; echo sent >&2) & timeout 100 head -c 20000000 <&3 | wc -c", port))
				if strings.TrimSpace(got) != "20000000" {
					t.Errorf("got %q", got)
				}
				// The shim counts them.
				out := must(t, s.Ctr(t.Context(), "task", "metrics", "--format", "json", id))
				m := regexp.MustCompile(`"network":\[{"name":"eth0","rx_bytes":(\d+),"rx_packets":\d+,"tx_bytes":(\d+)`).FindStringSubmatch(strings.Join(strings.Fields(out), ""))
				if m == nil || len(m[1]) < 8 || len(m[2]) < 8 {
					t.Errorf("20 MB each way are not in %s", out)
				}
			})
		})
	}
}

// background starts a container with further flags; it is removed at the test's end.
func background(t *testing.T, s *stack.Stack, flags []string, cmd ...string) string {
	t.Helper()
	id := name(t)
	backgroundAs(t, s, id, flags, cmd...)
	return id
}

// backgroundAs is background with an identifier of one's own, for tests with several
// containers.
func backgroundAs(t *testing.T, s *stack.Stack, id string, flags []string, cmd ...string) {
	t.Helper()
	t.Cleanup(func() { remove(t, s, id) })
	must(t, s.CtrRun(t.Context(), append(append(append([]string{"-d"}, flags...), img, id), cmd...)...))
}

func TestHostLoopbackIsClosed(t *testing.T) {
	s := userStack(t)
	port := echotest.Serve(t, "127.0.0.1")
	out := must(t, s.CtrRun(t.Context(), "--rm", img, name(t), "bash", "-c", fmt.Sprintf(
		"for a in 192.168.127.254 192.168.127.1 127.0.0.1 169.254.169.254 fd61:7070:6c65:766d::fe; do (exec 3<>/dev/tcp/$a/%d) 2>&1 | grep -o refused | uniq | grep . || echo $a answers; done", port)))
	if out != strings.Repeat("refused\n", 5) {
		t.Errorf("got %q", out)
	}
}

func TestNoNetwork(t *testing.T) {
	s := userStack(t)
	out := must(t, s.CtrRun(t.Context(), "--rm", "--annotation", "dev.applevm.network=none", img, name(t), "sh", "-c", "ls /sys/class/net; cat /proc/net/route | wc -l"))
	if out != "lo\n1\n" {
		t.Errorf("got %q", out)
	}
}

func TestPublishedPorts(t *testing.T) {
	s := userStack(t)
	first, err := strconv.Atoi(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	publish := fmt.Sprintf("127.0.0.1:%d-%d:7000-7001,127.0.0.1:%d:7000/udp", first, first+1, first)
	const serve = `
use strict; use IO::Socket::INET; $| = 1;
for my $port (7000, 7001) {
  next if fork;
  my $l = IO::Socket::INET->new(LocalPort => $port, Listen => 5, ReuseAddr => 1) or die "tcp $port: $!";
  while (my $c = $l->accept) { my $line = <$c>; print $c "$port: $line"; close $c }
}
my $u = IO::Socket::INET->new(LocalPort => 7000, Proto => "udp") or die "udp: $!";
while ($u->recv(my $b, 1000)) { $u->send("udp: $b") }
`
	ask := func(network string, port int) string {
		c, err := net.Dial(network, fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := fmt.Fprintln(c, "hello"); err != nil {
			return err.Error()
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return err.Error()
		}
		return line
	}
	t.Run("served", func(t *testing.T) {
		background(t, s, []string{"--annotation", "dev.applevm.publish=" + publish}, "perl", "-e", serve)
		for _, tt := range []struct {
			network string
			port    int
			want    string
		}{{"tcp", first, "7000: hello\n"}, {"tcp", first + 1, "7001: hello\n"}, {"udp", first, "udp: hello\n"}} {
			var got string
			waitFor(t, fmt.Sprintf("an answer from %s port %d", tt.network, tt.port), func() bool {
				got = ask(tt.network, tt.port)
				return got == tt.want
			})
		}
		t.Run("taken", func(t *testing.T) {
			r := do(t, s.CtrRun(t.Context(), "--rm", "--annotation", "dev.applevm.publish=127.0.0.1:"+strconv.Itoa(first)+":80", img, name(t), "echo", "it ran"))
			if r.code == 0 || strings.Contains(r.stdout, "it ran") || !strings.Contains(r.stderr, fmt.Sprintf("publish tcp port 127.0.0.1:%d: it is in use on the host", first)) {
				t.Error(r)
			}
		})
	})
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", first)); err == nil {
		t.Errorf("the port outlives its container: %v", c.Close())
	}
	clean(t, s)
}

// TestHostNetwork: what a container with the host's network listens on appears on
// the host's loopback, whatever address it is bound to, and goes with it.
func TestHostNetwork(t *testing.T) {
	s := userStack(t)
	all, v4, v6 := servicePort(t), freePort(t), freePort(t)
	const serve = `
use strict; use IO::Socket::IP; $| = 1;
my ($all, $v4, $v6) = @ARGV;
for my $at (["0.0.0.0", $all], ["127.0.0.1", $v4], ["::1", $v6]) {
  next if fork;
  my $l = IO::Socket::IP->new(LocalHost => $at->[0], LocalPort => $at->[1], Listen => 5, ReuseAddr => 1) or die "@$at: $@";
  while (my $c = $l->accept) {
    my $all = join "", <$c>;
    print $c "$at->[0]: ", length $all; close $c;
    exit if $all eq "end";
  }
}
my $u = IO::Socket::IP->new(LocalHost => "0.0.0.0", LocalPort => $all, Proto => "udp") or die "udp: $@";
while ($u->recv(my $b, 1000)) { $u->send("udp: $b") }
`
	ask := func(network, addr, text string) string {
		c, err := net.Dial(network, addr)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(c, text); err != nil {
			return err.Error()
		}
		if network == "udp" {
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			if err != nil {
				return err.Error()
			}
			return string(buf[:n])
		}
		_ = c.(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(c)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	gone := func(addr string) bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}
	t.Run("served", func(t *testing.T) {
		background(t, s, []string{"--net-host"}, "perl", "-e", serve, all, v4, v6)
		big := strings.Repeat("x", 200000)
		for _, tt := range []struct{ network, addr, text, want string }{
			{"tcp", "127.0.0.1:" + all, big, "0.0.0.0: 200000"},
			{"tcp", "127.0.0.1:" + v4, "hello", "127.0.0.1: 5"},
			{"tcp", "[::1]:" + v6, "hello", "::1: 5"},
			{"udp", "127.0.0.1:" + all, "hello", "udp: hello"},
		} {
			var got string
			waitFor(t, "an answer from "+tt.network+" "+tt.addr, func() bool {
				got = ask(tt.network, tt.addr, tt.text)
				return got == tt.want
			})
		}
		if got := ask("tcp", "127.0.0.1:"+v4, "end"); got != "127.0.0.1: 3" {
			t.Errorf("got %q", got)
		}
		waitFor(t, "the port of a server that has ended to close", func() bool { return gone("127.0.0.1:" + v4) })
	})
	for _, addr := range []string{"127.0.0.1:" + all, "[::1]:" + v6} {
		if !gone(addr) {
			t.Errorf("%s outlives its container", addr)
		}
	}
	clean(t, s)
}

// TestNerdctlPublish: nerdctl's -p with the user network.
func TestNerdctlPublish(t *testing.T) {
	s := rootStack(t)
	port := freePort(t)
	const id = "published"
	t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", id).Run() })
	must(t, s.NerdctlRun(t.Context(), "-d", "--name", id, "--annotation", "dev.applevm.network=user", "-p", "127.0.0.1:"+port+":8080", img,
		"perl", "-MIO::Socket::INET", "-e", `my $l = IO::Socket::INET->new(LocalPort => 8080, Listen => 5) or die; while (my $c = $l->accept) { print $c "hello"; close $c }`))
	var got string
	waitFor(t, "an answer from the published port", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		b, err := io.ReadAll(c)
		got = string(b)
		return err == nil && got == "hello"
	})
	if out := must(t, s.Nerdctl(t.Context(), "port", id)); out != "8080/tcp -> 127.0.0.1:"+port+"\n" {
		t.Errorf("nerdctl port: %q", out)
	}
	must(t, s.Nerdctl(t.Context(), "rm", "-f", id))
	if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
		t.Errorf("the port outlives its container: %v", c.Close())
	}
	clean(t, s)
}
