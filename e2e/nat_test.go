package e2e

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/applevm/applevm/internal/accept"
)

// TestNAT: the network "nat" is the driver's own, in which a DHCP server gives the container its address, and whose
// gateway leads to the host. On the stand-in for macOS's framework it is QEMU's: to the host's loopback.
func TestNAT(t *testing.T) {
	s := userStack(t)
	nat := []string{"--rm", "--annotation", "dev.applevm.network=nat"}
	if !withVZ() {
		fails(t, s.CtrRun(t.Context(), append(nat, img, name(t), "true")...), `the network "nat" (annotation dev.applevm.network) is macOS's own`)
		return
	}
	address := "127.0.0.1:0"
	if runtime.GOOS == "darwin" {
		address = ":0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go accept.All(t.Context(), l, func(c net.Conn) {
		_, _ = fmt.Fprintln(c, "hello from the host")
		_ = c.Close()
	})
	// The gateway's address is in hexadecimal there, the last byte first.
	script := fmt.Sprintf(`read -r _ _ gateway _ < <(grep -E '^eth0[[:space:]]00000000' /proc/net/route)
address=$((16#${gateway:6:2})).$((16#${gateway:4:2})).$((16#${gateway:2:2})).$((16#${gateway:0:2}))
cat </dev/tcp/$address/%d; grep -o '^nameserver [0-9]' /etc/resolv.conf | head -n 1; cat /sys/class/net/eth0/mtu; grep localhost /etc/hosts | head -n 1`,
		l.Addr().(*net.TCPAddr).Port)
	got := must(t, s.CtrRun(t.Context(), append(nat, img, name(t), "bash", "-c", script)...))
	if want := "hello from the host\nnameserver 1\n1500\n127.0.0.1\tlocalhost\n"; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	publish := append([]string{"--annotation", "dev.applevm.publish=18080:80"}, nat...)
	r := fails(t, s.CtrRun(t.Context(), append(publish, img, name(t), "true")...), `ports cannot be published with the network "nat"`)
	if !strings.Contains(r.stderr, `use "user"`) {
		t.Errorf("no remedy: %s", r)
	}
}
