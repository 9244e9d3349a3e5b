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

// ownAddress is where a host without a permanent address finds itself (Debian
// Reference, section 5.1.1).
const ownAddress = "127.0.1.1"

// etcFiles are the three files of a container with a user network, for those that no
// client mounts. One without a network has the image's, unless its client always makes
// them and could not (always).
func (n Network) etcFiles(hostname string, readFile func(string) ([]byte, error), always bool) []File {
	if !n.User && !n.NAT && !always {
		return nil
	}
	var out []File
	add := func(path, content string) {
		out = append(out, File{Destination: path, Content: content, Generated: true})
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for _, e := range n.names(hostname) {
		hosts += e[0] + "\t" + e[1] + "\n"
	}
	add(etcHosts, hosts)
	if hostname != "" {
		add(etcHostname, hostname+"\n")
	}
	if n.NAT {
		add(etcResolv, "# The DHCP server names no nameserver.\n") // until it does
		return out
	}
	if !n.User {
		add(etcResolv, "# This container has no network.\n")
		return out
	}
	// Without the host's own file there is nothing to search and no option.
	host, _ := readFile(etcResolv)
	add(etcResolv, n.resolvConf(host))
	return out
}

// isOwnResolv tells whether f is a resolv.conf that no client has made.
func isOwnResolv(f File) bool { return f.Destination == etcResolv && f.Generated }

// names are the addresses that the container and its host are known by, each with its
// name. The container's own is not known (empty) if it has its host's.
func (n Network) names(hostname string) [][2]string {
	var out [][2]string
	switch {
	case hostname == "":
	case n.User:
		for _, a := range n.Addresses.Guest {
			out = append(out, [2]string{a.Addr().String(), hostname})
		}
	default:
		out = append(out, [2]string{ownAddress, hostname})
	}
	if n.User {
		for _, a := range n.Addresses.Host {
			out = append(out, [2]string{a.String(), usernet.HostName})
		}
	}
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
