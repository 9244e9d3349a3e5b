package plan

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/applevm/applevm/network/usernet"
)

// The files by which a container's programs know names. Clients make them for
// each container, or leave them to the image.
const (
	etcHosts    = "/etc/hosts"
	etcHostname = "/etc/hostname"
	etcResolv   = "/etc/resolv.conf"
)

// etcFiles are those of the three files that a container with a user network
// lacks because no client mounts them.
func (n Network) etcFiles(hostname string, mounted func(path string) bool, readFile func(string) ([]byte, error)) []File {
	if !n.User {
		return nil
	}
	var out []File
	add := func(path, content string) {
		if !mounted(path) {
			out = append(out, File{Destination: path, Content: content, Generated: true})
		}
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, a := range n.Addresses.Guest {
		if hostname == "" {
			break // not known, for a container that has the host's
		}
		fmt.Fprintf(&hosts, "%s\t%s\n", a.Addr(), hostname)
	}
	for _, a := range n.Addresses.Host {
		fmt.Fprintf(&hosts, "%s\t%s\n", a, usernet.HostName)
	}
	add(etcHosts, hosts.String())
	if hostname != "" {
		add(etcHostname, hostname+"\n")
	}
	// Without the host's own file there is nothing to search and no option.
	host, _ := readFile(etcResolv)
	add(etcResolv, resolvConf(n.Addresses.Gateway[0], host))
	return out
}

// resolvConf names the gateway as the only nameserver, which asks the host's own
// as they are at each query. The rest is the host's.
func resolvConf(gateway netip.Addr, host []byte) string {
	out := fmt.Sprintf("nameserver %s\n", gateway)
	for line := range strings.Lines(string(host)) {
		switch f := strings.Fields(line); {
		case len(f) > 1 && slices.Contains([]string{"search", "domain", "options"}, f[0]):
			out += strings.Join(f, " ") + "\n"
		}
	}
	return out
}

// reachableNameservers replaces the host's loopback addresses in a client's
// resolv.conf (systemd-resolved's, for instance), where nobody answers the guest,
// by the gateway, which asks there.
func (n Network) reachableNameservers(content []byte) []byte {
	var out bytes.Buffer
	replaced := false
	for line := range bytes.Lines(content) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil && a.IsLoopback() {
				if !replaced {
					fmt.Fprintf(&out, "nameserver %s\n", n.Addresses.Gateway[0])
				}
				replaced = true
				continue
			}
		}
		out.Write(line)
	}
	return out.Bytes()
}
