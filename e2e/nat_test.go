package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// TestNAT: the network "nat" is the driver's own, in which a DHCP server gives the container its address. On the
// stand-in for macOS's framework it is QEMU's, whose gateway leads to the host's loopback.
func TestNAT(t *testing.T) {
	s := userStack(t)
	nat := []string{"--rm", "--annotation", "dev.applevm.network=nat"}
	if !onStandIn() {
		fails(t, s.CtrRun(t.Context(), append(nat, img, name(t), "true")...), `the network "nat" (annotation dev.applevm.network) is macOS's own`)
		return
	}
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
			_, _ = fmt.Fprintln(c, "hello from the host")
			_ = c.Close()
		}
	}()
	script := fmt.Sprintf(`cat </dev/tcp/10.0.2.2/%d; grep -v '^#' /etc/resolv.conf; cat /sys/class/net/eth0/mtu; grep -c 0202000A /proc/net/route; grep localhost /etc/hosts | head -n 1`,
		l.Addr().(*net.TCPAddr).Port)
	got := must(t, s.CtrRun(t.Context(), append(nat, img, name(t), "bash", "-c", script)...))
	if want := "hello from the host\nnameserver 10.0.2.3\n1500\n1\n127.0.0.1\tlocalhost\n"; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	publish := append([]string{"--annotation", "dev.applevm.publish=18080:80"}, nat...)
	r := fails(t, s.CtrRun(t.Context(), append(publish, img, name(t), "true")...), `ports cannot be published with the network "nat"`)
	if !strings.Contains(r.stderr, `use "user"`) {
		t.Errorf("no remedy: %s", r)
	}
}
