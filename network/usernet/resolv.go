package usernet

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"strings"
)

// maxNameservers is how many a resolver asks (resolv.conf(5), MAXNS).
const maxNameservers = 3

// maxResolvConf bounds what is read of resolv.conf, in bytes.
const maxResolvConf = 64 << 10

// nameservers returns the host's nameservers as they are now: a file that has
// changed, by a VPN for instance, holds from the next query on.
func nameservers(path string) []netip.Addr {
	// Without one, a resolver asks the host itself (resolv.conf(5)).
	local := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	f, err := os.Open(path)
	if err != nil {
		return local
	}
	defer f.Close()
	servers := parseNameservers(io.LimitReader(f, maxResolvConf))
	if len(servers) == 0 {
		return local
	}
	return servers
}

func parseNameservers(r io.Reader) []netip.Addr {
	var out []netip.Addr
	for s := bufio.NewScanner(r); s.Scan() && len(out) < maxNameservers; {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, a)
		}
	}
	return out
}
