//go:build !linux

package tapns

import (
	"errors"
	"net"
	"os"
)

// Namespace exists on Linux only.
type Namespace struct {
	NS   *os.File
	Taps []*os.File
}

// Interface exists on Linux only.
type Interface struct {
	Name      string
	MAC       net.HardwareAddr
	MTU       int
	Addresses []*net.IPNet
	Routes    []Route
}

// Route exists on Linux only.
type Route struct {
	Destination *net.IPNet
	Gateway     net.IP
}

// New fails.
func New(int) (*Namespace, error) {
	return nil, errors.New("there are no network namespaces on this system: use --net=host or --net=none")
}

// CloseTaps does nothing.
func (*Namespace) CloseTaps() {}

// Close does nothing.
func (*Namespace) Close() {}

// Join fails.
func (*Namespace) Join(int) ([]Interface, error) { return nil, errors.ErrUnsupported }
