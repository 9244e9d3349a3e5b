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
	add(etcResolv, n.resolvConf(host))
	return out
}

// resolvConf names the gateway as the only nameserver, which asks the host's own
// as they are at each query. The rest is the host's.
func (n Network) resolvConf(host []byte) string {
	out := fmt.Sprintf("nameserver %s\n", n.Addresses.Gateway[0])
	for line := range strings.Lines(string(host)) {
		switch f := strings.Fields(line); {
		case len(f) > 1 && slices.Contains([]string{"search", "domain", "options"}, f[0]):
			out += strings.Join(f, " ") + "\n"
		}
	}
	if n.Shared {
		out = searchMachines(out)
	}
	return out
}

// searchMachines has a resolv.conf look for names in the gateway's domain first, so
// that no other domain of the list has an answer for another container's name.
func searchMachines(conf string) string {
	var out strings.Builder
	list := []string{"search", usernet.Domain}
	for line := range strings.Lines(conf) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "search" || f[0] == "domain") {
			list = append(list[:2:2], f[1:]...) // the last one counts (resolv.conf(5))
			continue
		}
		out.WriteString(line)
	}
	text := out.String()
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + strings.Join(list, " ") + "\n"
}

// clientResolvConf changes a client's resolv.conf so that it does in a machine.
func (n Network) clientResolvConf(content []byte) []byte {
	b := n.reachableNameservers(content)
	if !n.Shared {
		return b
	}
	// The gateway knows the other containers, and asks the host's nameservers else.
	return []byte(fmt.Sprintf("nameserver %s\n", n.Addresses.Gateway[0]) + searchMachines(string(b)))
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
