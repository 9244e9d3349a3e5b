package plan

import (
	"encoding/json"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/config"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/network/usernet"
	"github.com/applevm/applevm/vmm"
)

// Annotations of a container about its network.
const (
	// AnnotationNetwork is "none" or "user", and overrides all else that decides.
	AnnotationNetwork = "dev.applevm.network"
	// AnnotationPublish lists ports to publish, as clients write them:
	// [[ADDRESS:]HOSTPORT:]PORT[/tcp|/udp], with ranges, separated by commas.
	AnnotationPublish = "dev.applevm.publish"

	// nerdctl's own: a JSON list of the networks that the user asked for.
	annotationNerdctlNetworks = "nerdctl/networks"
)

// interfaceName is the name of a container's first network interface.
const interfaceName = "eth0"

// Network is what network a container gets.
type Network struct {
	// User gives its machine a network of its own (package usernet); without it
	// the machine has none.
	User bool
	// Config is the user network's.
	Config usernet.Config
	// Addresses are the user network's.
	Addresses usernet.Addresses
	// Publish are the ports that appear on the host.
	Publish []usernet.Port
	// HostPorts says that what the container listens on appears on the host's
	// loopback: it asked for the host's network.
	HostPorts bool
}

// network decides the container's network.
func network(s *specs.Spec, in Input) (Network, error) {
	mode, by := networkMode(s, in.Network)
	switch mode {
	case config.NetworkNone:
		if s.Annotations[AnnotationPublish] != "" {
			return Network{}, invalid("annotation %s asks for published ports, but the container has no network (%s)", AnnotationPublish, by)
		}
		return Network{}, nil
	case config.NetworkUser:
	default:
		return Network{}, unsupported("the network %q (%s) is not implemented: use %q or %q", mode, by, config.NetworkUser, config.NetworkNone)
	}
	n := Network{User: true, Config: usernet.Config{
		Subnet:       in.Network.Subnet,
		MTU:          in.Network.MTU,
		HostLoopback: in.Network.HostLoopback,
		Limits:       usernet.Limits{TCP: in.Network.MaxConnections, UDP: in.Network.MaxUDPFlows},
	}}
	n.HostPorts = !hasNamespace(s.Linux, specs.NetworkNamespace)
	var err error
	if n.Addresses, err = usernet.AddressesIn(n.Config.Subnet); err != nil {
		return Network{}, invalid("network.subnet in the configuration: %w", err)
	}
	if n.Publish, err = published(s.Annotations, in.ReadFile); err != nil {
		return Network{}, err
	}
	return n, nil
}

// networkMode says which network a container is to have, and who decided that.
func networkMode(s *specs.Spec, c config.Network) (mode, by string) {
	if a := s.Annotations[AnnotationNetwork]; a != "" {
		return a, "annotation " + AnnotationNetwork
	}
	if !hasNamespace(s.Linux, specs.NetworkNamespace) {
		// What the host's network would be to a process of the host, the user
		// network is to a machine.
		return config.NetworkUser, "the container shares the host's network"
	}
	var names []string
	if text := s.Annotations[annotationNerdctlNetworks]; text != "" && json.Unmarshal([]byte(text), &names) == nil {
		switch {
		case slices.Equal(names, []string{"none"}):
			return config.NetworkNone, "nerdctl's --net"
		case len(names) > 0 && names[0] != "host":
			return names[0], "nerdctl's --net"
		}
	}
	return c.Default, "network.default in the configuration"
}

// nics are the machine's network interfaces, without their files.
func (n Network) nics() []vmm.NIC {
	if !n.User {
		return nil
	}
	return []vmm.NIC{{MAC: n.Addresses.MAC, MTU: n.mtu()}}
}

// interfaces are the same as the container sees them.
func (n Network) interfaces() []*guestv1.Interface {
	if !n.User {
		return nil
	}
	i := &guestv1.Interface{Mac: n.Addresses.MAC, Name: interfaceName, Mtu: uint32(n.mtu())}
	for _, a := range n.Addresses.Guest {
		i.Addresses = append(i.Addresses, a.String())
	}
	for k, everywhere := range []string{"0.0.0.0/0", "::/0"} {
		i.Routes = append(i.Routes, &guestv1.Route{Destination: everywhere, Gateway: n.Addresses.Gateway[k].String()})
	}
	return []*guestv1.Interface{i}
}

func (n Network) mtu() int {
	if n.Config.MTU == 0 {
		return usernet.DefaultMTU
	}
	return n.Config.MTU
}
