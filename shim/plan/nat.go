package plan

import (
	"crypto/sha256"
	"net"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/vmm"
)

// natMTU is Ethernet's, which the host's own interfaces have.
const natMTU = 1500

// HasNAT tells whether a driver has the network "nat".
func HasNAT(drv vmm.Driver) bool {
	d, ok := drv.(vmm.NATer)
	return ok && d.HasNAT()
}

// behindNAT is the driver's own network, in which the container has an address that a DHCP server gives it
// and that the host can reach: no port needs to be published, nor can one be.
func behindNAT(s *specs.Spec, in Input, by string) (Network, error) {
	if !in.NAT {
		return Network{}, unsupported("the network \"nat\" (%s) is macOS's own: here use \"user\"", by)
	}
	ports, err := published(s.Annotations, in.ReadFile)
	if err != nil {
		return Network{}, err
	}
	if len(ports) > 0 {
		return Network{}, invalid("ports cannot be published with the network \"nat\" (%s), in which the host reaches the container by its own address: use \"user\"", by)
	}
	// Others' machines are in the same network: the address is drawn from what tells containers apart.
	sum := sha256.Sum256([]byte(in.Bundle + "\x00" + name(in)))
	return Network{NAT: true, MAC: append(net.HardwareAddr{0x02}, sum[:5]...)}, nil
}
