package plan

import (
	"encoding/json"
	"net"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/config"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/network/tapns"
	"github.com/applevm/applevm/network/usernet"
	"github.com/applevm/applevm/vmm"
)

// Annotations of a container about its network.
const (
	// AnnotationNetwork is "none", "user", "nat" or the name of a network that containers
	// share (Shared), and overrides all else that decides.
	AnnotationNetwork = "dev.applevm.network"
	// AnnotationAliases lists further names of the container in a shared network,
	// separated by commas.
	AnnotationAliases = "dev.applevm.network.aliases"
	// AnnotationPublish lists ports to publish, as clients write them:
	// [[ADDRESS:]HOSTPORT:]PORT[/tcp|/udp], with ranges, separated by commas.
	AnnotationPublish = "dev.applevm.publish"

	// nerdctl's own: a JSON list of the networks that the user asked for, and the
	// container's name.
	annotationNerdctlNetworks = "nerdctl/networks"
	annotationNerdctlName     = "nerdctl/name"
)

const (
	// modeCNI is the network that a client sets up itself, in a network namespace
	// that is made for it.
	modeCNI = "cni"
	// modeNetNS is the same in a network namespace that the client has made.
	modeNetNS = "netns"
)

// othersModes are no names of networks that containers share, lest somebody gets one who
// means the client's.
var othersModes = []string{modeCNI, modeNetNS, "host", "bridge"}

// maxNetworks bounds a container's networks: each is a device of its machine's.
const maxNetworks = 16

// InterfaceName is the name of the network interface of a container with a user
// network.
const InterfaceName = "eth0"

// Network is what network a container gets.
type Network struct {
	// User gives its machine a network of its own (package usernet). Without it and
	// CNI the machine has none.
	User bool
	// NAT gives its machine an interface in the driver's own network (vmm.NIC.NAT), called MAC.
	NAT bool
	MAC net.HardwareAddr
	// CNI is how many networks the client connects it to, in a network namespace:
	// NetNS, or one that is made for it, where hooks do it.
	CNI int
	// NetNS is the path of a network namespace that the client has made; empty if
	// there is none, or nothing in it.
	NetNS string
	// Shared says that other containers are in the user network: Config.LAN.
	Shared bool
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
	mode, by, count := networkMode(s, in.Network)
	path := namespacePath(s.Linux, specs.NetworkNamespace)
	if strings.HasPrefix(mode, "container:") {
		return Network{}, unsupported("the network of another container (%s) cannot be joined: each has a machine of its own", mode)
	}
	switch {
	case mode == modeNetNS && by == byClient:
		count, err := in.Interfaces(path)
		if err != nil {
			return Network{}, unavailable("%w", err)
		}
		if count == 0 {
			return Network{}, nil
		}
		return joined(Network{CNI: count, NetNS: path})
	case mode == modeCNI && count > 0:
		return joined(Network{CNI: count})
	case mode == config.NetworkNone:
		if s.Annotations[AnnotationPublish] != "" {
			return Network{}, invalid("annotation %s asks for published ports, but the container has no network (%s)", AnnotationPublish, by)
		}
		return Network{}, nil
	case mode == config.NetworkNAT:
		return behindNAT(s, in, by)
	case slices.Contains(othersModes, mode):
		return Network{}, invalid("the network %q (%s) is the client's to give: use its --net", mode, by)
	}
	n := Network{User: true, Config: usernet.Config{
		Subnet:       in.Network.Subnet,
		MTU:          in.Network.MTU,
		HostLoopback: in.Network.HostLoopback,
		Limits:       usernet.Limits{TCP: in.Network.MaxConnections, UDP: in.Network.MaxUDPFlows},
	}}
	n.HostPorts = !hasNamespace(s.Linux, specs.NetworkNamespace)
	var err error
	if n.Addresses, err = n.Config.Addresses(); err != nil {
		return Network{}, invalid("network.subnet in the configuration: %w", err)
	}
	if mode != config.NetworkUser {
		if n, err = n.share(mode, by, s, in); err != nil {
			return Network{}, err
		}
	}
	if n.Publish, err = published(s.Annotations, in.ReadFile); err != nil {
		return Network{}, err
	}
	return n, nil
}

// joined bounds how many networks a client connects the container to.
func joined(n Network) (Network, error) {
	if n.CNI > maxNetworks {
		return Network{}, invalid("%d networks are more than %d", n.CNI, maxNetworks)
	}
	return n, nil
}

// byClient says that the spec decides which network a container gets.
const byClient = "the container's spec"

// networkMode says which network a container is to have, who decided that, and of
// the client's own how many there are.
func networkMode(s *specs.Spec, c config.Network) (mode, by string, count int) {
	if a := s.Annotations[AnnotationNetwork]; a != "" {
		return a, "annotation " + AnnotationNetwork, 0
	}
	var names []string
	if text := s.Annotations[annotationNerdctlNetworks]; text != "" && json.Unmarshal([]byte(text), &names) != nil {
		names = nil
	}
	if len(names) > 0 && strings.HasPrefix(names[0], "container:") {
		return names[0], "nerdctl's --net", 0
	}
	if !hasNamespace(s.Linux, specs.NetworkNamespace) {
		// What the host's network would be to a process of the host, the user
		// network is to a machine.
		return config.NetworkUser, "the container shares the host's network", 0
	}
	switch {
	case namespacePath(s.Linux, specs.NetworkNamespace) != "":
		return modeNetNS, byClient, 0
	case slices.Equal(names, []string{"none"}):
		return config.NetworkNone, "nerdctl's --net", 0
	case len(names) > 0:
		return modeCNI, "nerdctl's --net", len(names)
	}
	return c.Default, "network.default in the configuration", 0
}

// nics are the machine's network interfaces, without their files.
func (n Network) nics() []vmm.NIC {
	if n.NAT {
		return []vmm.NIC{{MAC: n.MAC, MTU: natMTU, NAT: true}}
	}
	if !n.User {
		var out []vmm.NIC
		for i := range n.CNI {
			// The guest is given the true address and MTU once they are known.
			out = append(out, vmm.NIC{MAC: n.tapMAC(i), MTU: vmm.MaxMTU, Tap: true})
		}
		return out
	}
	return []vmm.NIC{{MAC: n.Addresses.MAC, MTU: n.mtu()}}
}

// interfaces are the same as the container sees them. ownResolv says that it has no client's resolv.conf.
func (n Network) interfaces(ownResolv bool) []*guestv1.Interface {
	if n.NAT {
		i := &guestv1.Interface{Mac: n.MAC, Name: InterfaceName, Mtu: natMTU, Dhcp: true}
		if ownResolv {
			i.ResolvConf = etcResolv
		}
		return []*guestv1.Interface{i}
	}
	if !n.User {
		return nil
	}
	i := &guestv1.Interface{Mac: n.Addresses.MAC, Name: InterfaceName, Mtu: uint32(n.mtu())}
	for _, a := range n.Addresses.Guest {
		i.Addresses = append(i.Addresses, a.String())
	}
	for k, everywhere := range []string{"0.0.0.0/0", "::/0"} {
		i.Routes = append(i.Routes, &guestv1.Route{Destination: everywhere, Gateway: n.Addresses.Gateway[k].String()})
	}
	return []*guestv1.Interface{i}
}

// tapMAC is the address by which the guest finds the device of the client's
// network i: a locally administered one.
func (Network) tapMAC(i int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x61, 0x76, 0x6d, 0x01, byte(i)}
}

// Joined returns the guest's interfaces for what the client has set up in the
// network namespace.
func (n Network) Joined(list []tapns.Interface) []*guestv1.Interface {
	var out []*guestv1.Interface
	for k, j := range list {
		i := &guestv1.Interface{Mac: n.tapMAC(k), NewMac: j.MAC, Name: j.Name, Mtu: uint32(j.MTU)}
		for _, a := range j.Addresses {
			i.Addresses = append(i.Addresses, a.String())
		}
		for _, r := range j.Routes {
			route := &guestv1.Route{Destination: r.Destination.String()}
			if r.Gateway != nil {
				route.Gateway = r.Gateway.String()
			}
			i.Routes = append(i.Routes, route)
		}
		// A gateway is found by the routes without one.
		slices.SortStableFunc(i.Routes, func(a, b *guestv1.Route) int { return strings.Compare(a.Gateway, b.Gateway) })
		out = append(out, i)
	}
	return out
}

func (n Network) mtu() int {
	if n.Config.MTU == 0 {
		return usernet.DefaultMTU
	}
	return n.Config.MTU
}
