package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSharedNetwork: containers of one network find and reach each other, without
// privilege on the host; those of another network do not. One that was killed is
// gone at once, and its successor is found.
func TestSharedNetwork(t *testing.T) {
	s := userStack(t)
	t.Cleanup(func() { clean(t, s) }) // when all containers are removed
	busybox := busyboxIn(t, userDir(t, s, name(t)))
	flags := func(network, alias string) []string {
		return []string{
			"--annotation", "dev.applevm.network=" + network, "--annotation", "dev.applevm.network.aliases=" + alias,
			"--mount", "type=bind,src=" + busybox + ",dst=/tools/busybox,options=rbind:ro",
		}
	}
	const serve = `
use strict; use IO::Socket::IP; $| = 1;
if (!fork) {
  my $u = IO::Socket::IP->new(LocalHost => "0.0.0.0", LocalPort => 80, Proto => "udp") or die "udp: $@";
  while ($u->recv(my $b, 60000)) { $u->send("udp: " . length $b) }
}
my $l = IO::Socket::IP->new(LocalHost => "::", LocalPort => 80, Listen => 5, V6Only => 0, ReuseAddr => 1) or die "tcp: $@";
while (my $c = $l->accept) { if (!fork) { my $all = join "", <$c>; print $c $c->peerhost, " sent ", length $all; exit } close $c }
`
	const server, client, stranger = "shared-server", "shared-client", "shared-stranger"
	backgroundAs(t, s, server, flags("blue", "web"), "perl", "-e", serve)
	backgroundAs(t, s, client, flags("blue", "client"), "sleep", "1000")
	backgroundAs(t, s, stranger, flags("red", "web-of-red"), "sleep", "1000")
	in := func(id, script string) string {
		t.Helper()
		return do(t, s.CtrExec(t.Context(), "--exec-id", fmt.Sprint("e", time.Now().UnixNano()), id, "bash", "-c", script)).stdout
	}
	const ask = `use IO::Socket::IP; my ($host, $n) = @ARGV; my $c = IO::Socket::IP->new(PeerHost => $host, PeerPort => 80) or die "$host: $@";
print $c "x" x $n; $c->shutdown(1); print <$c>;`
	call := func(host string, n int) string { return fmt.Sprintf("perl -e '%s' %s %d", ask, host, n) }
	waitFor(t, "the server", func() bool { return in(client, call("web", 1)) != "" })
	for _, tt := range []struct{ name, id, script, want string }{
		{"by address", client, call("192.168.127.2", 5), "::ffff:192.168.127.3 sent 5"},
		{"IPv6", client, call("fd61:7070:6c65:766d::2", 5), "fd61:7070:6c65:766d::3 sent 5"},
		{"a lot", client, call("192.168.127.2", 20000000), "::ffff:192.168.127.3 sent 20000000"},
		{"names", client, "getent ahostsv4 " + server + " | head -1 | cut -d' ' -f1; getent ahostsv6 web | head -1 | cut -d' ' -f1; getent hosts nosuch || echo none",
			"192.168.127.2\nfd61:7070:6c65:766d::2\nnone\n"},
		{"UDP", client, `perl -e 'use IO::Socket::IP; my $u = IO::Socket::IP->new(PeerHost => "192.168.127.2", PeerPort => 80, Proto => "udp"); $u->send("x" x 9000); alarm 60; $u->recv(my $b, 100); print $b'`, "udp: 9000"},
		{"ping", client, "/tools/busybox ping -c 1 -W 60 web | grep -o '1 packets received'", "1 packets received\n"},
		{"ping, IPv6", client, "/tools/busybox ping -6 -c 1 -W 60 web | grep -o '1 packets received'", "1 packets received\n"},
		{"the gateway", client, "/tools/busybox ping -c 1 -W 60 gateway.applevm.internal | grep -o '1 packets received'", "1 packets received\n"},
		{"another network by name", stranger, "getent hosts web || echo none", "none\n"},
		{"another network by address", stranger, "/tools/busybox ping -c 1 -W 1 192.168.127.3 | grep -o '0 packets received'; ip=$(hostname -i); echo $ip | grep -o 192.168.127.2",
			"0 packets received\n192.168.127.2\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := in(tt.id, tt.script); got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.script, got, tt.want)
			}
		})
	}
	for _, p := range s.Shims() {
		if strings.Contains(strings.Join(p.Args, " "), server) {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
	waitFor(t, "the end of the killed server's name", func() bool { return in(client, "getent hosts web || echo none") == "none\n" })
	backgroundAs(t, s, "shared-successor", flags("blue", "web"), "perl", "-e", serve)
	waitFor(t, "the server's successor", func() bool {
		return strings.HasSuffix(in(client, call("web", 7)), " sent 7")
	})
}
