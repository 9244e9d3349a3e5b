package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/applevm/applevm/e2e/stack"
)

// Addresses of a server that is not the host, as far as containers know (RFC 5737
// and RFC 3849: for documentation).
const (
	far4 = "198.51.100.7"
	far6 = "2001:db8::7"
)

// hostNameserver is the first nameserver of the host's resolv.conf.
func hostNameserver(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			return f[1]
		}
	}
	return "127.0.0.1" // resolv.conf(5)
}

// world is a network namespace with servers that stand for the rest of the world.
func world(t *testing.T) netNS {
	t.Helper()
	ns := newNetNS(t)
	nameserver := hostNameserver(t)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	var tcp []net.Listener
	var dns net.PacketConn
	must("pings of ordinary users, as on macOS and most hosts", ns.do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
	}))
	must("servers", ns.do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range []string{far4, far6, nameserver} {
			ip, err := netip.ParseAddr(a)
			if err != nil || ip.IsLoopback() {
				continue
			}
			addr, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", ip, ip.BitLen()))
			if err != nil {
				return err
			}
			// An IPv6 address is not ready until a look for duplicates ended, on loopback too.
			addr.Flags = syscall.IFA_F_NODAD
			if err := netlink.AddrAdd(lo, addr); err != nil {
				return err
			}
		}
		// A way to everywhere, as hosts have one.
		_, all, _ := net.ParseCIDR("0.0.0.0/0")
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK}); err != nil {
			return err
		}
		for _, a := range []string{net.JoinHostPort(far4, "7000"), net.JoinHostPort(far6, "7000"), "0.0.0.0:7001", "127.0.0.1:7002"} {
			network := "tcp4"
			if strings.HasPrefix(a, "[") {
				network = "tcp6"
			}
			l, err := net.Listen(network, a)
			if err != nil {
				return err
			}
			tcp = append(tcp, l)
		}
		dns, err = net.ListenPacket("udp", net.JoinHostPort(nameserver, "53"))
		return err
	}))
	for _, l := range tcp {
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, "hello from "+l.Addr().String()+"\n")
				_ = c.Close()
			}
		}()
	}
	t.Cleanup(func() { _ = dns.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := dns.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer, err := answerQuery(buf[:n]); err == nil {
				_, _ = dns.WriteTo(answer, from)
			}
		}
	}()
	return ns
}

// answerQuery knows the addresses of far.example, and of nothing else.
func answerQuery(query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	h.Response, h.RecursionAvailable = true, true
	known := q.Name.String() == "far.example."
	if !known {
		h.RCode = dnsmessage.RCodeNameError
	}
	b := dnsmessage.NewBuilder(nil, h)
	err = errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers())
	rh := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}
	switch {
	case !known:
	case q.Type == dnsmessage.TypeA:
		err = errors.Join(err, b.AResource(rh, dnsmessage.AResource{A: netip.MustParseAddr(far4).As4()}))
	case q.Type == dnsmessage.TypeAAAA:
		err = errors.Join(err, b.AAAAResource(rh, dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(far6).As16()}))
	}
	if err != nil {
		return nil, err
	}
	return b.Finish()
}

// TestUserNetworkToTheWorld: names, connections and pings to what is neither the
// container's machine nor its host.
func TestUserNetworkToTheWorld(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root: run this with sudo")
	}
	ns := world(t)
	s := newStack(t, stack.Options{NetNS: ns.path(), Unprivileged: withVZ()})
	tools := userDir(t, s, "tools")
	busyboxIn(t, tools)
	id := background(t, s, []string{"--mount", "type=bind,src=" + tools + ",dst=/tools,options=rbind:ro"}, "sleep", "1000")
	for i, tt := range []struct{ name, script, want string }{
		{"names", "getent ahostsv4 far.example | head -1 | cut -d' ' -f1; getent ahostsv6 far.example | head -1 | cut -d' ' -f1", far4 + "\n" + far6 + "\n"},
		{"a name that nobody has", "getent hosts nosuch.example || echo none", "none\n"},
		{"TCP by name", "cat </dev/tcp/far.example/7000", "hello from " + far4 + ":7000\n"},
		{"TCP, IPv6", "cat </dev/tcp/" + far6 + "/7000", "hello from [" + far6 + "]:7000\n"},
		{"ping", "/tools/busybox ping -c 1 -W 60 far.example | grep -o '1 packets received'", "1 packets received\n"},
		{"ping, IPv6", "/tools/busybox ping -6 -c 1 -W 60 " + far6 + " | grep -o '1 packets received'", "1 packets received\n"},
		{"ping to nobody", "/tools/busybox ping -c 1 -W 1 192.168.127.99 | grep -o '0 packets received'", "0 packets received\n"},
		{"the host, what listens everywhere", "cat </dev/tcp/host.applevm.internal/7001", "hello from 0.0.0.0:7001\n"},
		{"the host, what listens on loopback", "(cat </dev/tcp/host.applevm.internal/7002) 2>&1 | grep -o -m1 refused | head -n1", "refused\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := do(t, s.CtrExec(t.Context(), "--exec-id", fmt.Sprint("e", i), id, "bash", "-c", tt.script))
			if r.stdout != tt.want {
				t.Errorf("%s: %s\nwant %q", tt.script, r, tt.want)
			}
		})
	}
}
