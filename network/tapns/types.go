package tapns

import (
	"net"
	"os"
)

// Namespace is a network namespace with tap devices for a VMM.
type Namespace struct {
	// NS is the namespace.
	NS *os.File
	// Taps are the VMM's ends, with virtio-net headers (IFF_VNET_HDR).
	Taps []*os.File
	// borrowed is a namespace of somebody else's, which goes on after Close.
	borrowed bool
}

// CloseTaps closes this process's copies of the VMM's ends.
func (s *Namespace) CloseTaps() {
	for _, t := range s.Taps {
		_ = t.Close()
	}
	s.Taps = nil
}

// Interface is an interface of the namespace, as the guest is to have it.
type Interface struct {
	Name string
	MAC  net.HardwareAddr
	MTU  int
	// Addresses are with their networks.
	Addresses []*net.IPNet
	// Routes without a gateway (nil) are on the link.
	Routes []Route
}

// Route is one of an interface's routes.
type Route struct {
	Destination *net.IPNet
	Gateway     net.IP
}
