package plan

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-connections/nat"

	"github.com/applevm/applevm/network/usernet"
)

// nerdctl's annotations about published ports: newer versions keep them in a
// file of the container's state directory.
const (
	annotationNerdctlStateDir = "nerdctl/state-dir"
	annotationNerdctlPorts    = "nerdctl/ports"
	nerdctlNetworkConfig      = "network-config.json"
)

// maxPublished bounds the ports of one container: each is a socket of the shim's.
const maxPublished = 1024

// nerdctlPort is a port as nerdctl writes it down (go-cni's PortMapping).
type nerdctlPort struct {
	HostPort, ContainerPort int
	Protocol, HostIP        string
}

// published returns the ports to publish, from whatever asks for any.
func published(annotations map[string]string, readFile func(string) ([]byte, error)) ([]usernet.Port, error) {
	var out []usernet.Port
	for _, text := range strings.Split(annotations[AnnotationPublish], ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		mappings, err := nat.ParsePortSpec(text)
		if err != nil {
			return nil, invalid("annotation %s: %q: %w", AnnotationPublish, text, err)
		}
		for _, m := range mappings {
			p, err := port(m.Port.Proto(), m.Binding.HostIP, m.Binding.HostPort, m.Port.Port())
			if err != nil {
				return nil, invalid("annotation %s: %q: %w", AnnotationPublish, text, err)
			}
			out = append(out, p)
		}
	}
	asked, where, err := nerdctlPorts(annotations, readFile)
	if err != nil {
		return nil, invalid("nerdctl's published ports in %s: %w", where, err)
	}
	for _, a := range asked {
		p, err := port(a.Protocol, a.HostIP, strconv.Itoa(a.HostPort), strconv.Itoa(a.ContainerPort))
		if err != nil {
			return nil, invalid("nerdctl's published ports in %s: %w", where, err)
		}
		out = append(out, p)
	}
	if len(out) > maxPublished {
		return nil, invalid("%d published ports are more than %d", len(out), maxPublished)
	}
	return out, nil
}

// nerdctlPorts reads what nerdctl has written down, and says where.
func nerdctlPorts(annotations map[string]string, readFile func(string) ([]byte, error)) (list []nerdctlPort, where string, err error) {
	if dir := annotations[annotationNerdctlStateDir]; filepath.IsAbs(dir) {
		where = filepath.Join(dir, nerdctlNetworkConfig)
		b, err := readFile(where)
		if err == nil {
			var c struct {
				PortMappings []nerdctlPort `json:"portMappings"`
			}
			err = json.Unmarshal(b, &c)
			return c.PortMappings, where, err
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, where, err
		}
	}
	where = "annotation " + annotationNerdctlPorts
	if text := annotations[annotationNerdctlPorts]; text != "" {
		err = json.Unmarshal([]byte(text), &list)
	}
	return list, where, err
}

// port puts a published port together. No address stands for all of IPv4.
func port(protocol, hostIP, hostPort, guestPort string) (usernet.Port, error) {
	p := usernet.Port{Protocol: strings.ToLower(protocol)}
	if p.Protocol == "" {
		p.Protocol = "tcp"
	}
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return p, errors.New("only tcp and udp ports can be published, not " + protocol)
	}
	addr := netip.IPv4Unspecified()
	if hostIP != "" {
		var err error
		if addr, err = netip.ParseAddr(strings.Trim(hostIP, "[]")); err != nil {
			return p, err
		}
	}
	host, err := portNumber(hostPort)
	if err != nil {
		return p, errors.New("the host's port: " + err.Error())
	}
	if p.Guest, err = portNumber(guestPort); err != nil {
		return p, errors.New("the container's port: " + err.Error())
	}
	p.Host = netip.AddrPortFrom(addr.Unmap(), host)
	return p, nil
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New(strconv.Quote(s) + " is not one port from 1 to 65535")
	}
	return uint16(n), nil
}
