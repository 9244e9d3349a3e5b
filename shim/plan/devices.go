package plan

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
)

// deviceNumber identifies a device to the kernel.
type deviceNumber struct {
	kind         string // "c" or "b"
	major, minor int64
}

// portable are devices without hardware or state of the host behind them: each
// Linux kernel has its own, under the same number (Documentation/admin-guide/devices.txt).
// The guest refuses those that its kernel was built without.
var portable = map[deviceNumber]string{
	{"c", 1, 3}: "null", {"c", 1, 5}: "zero", {"c", 1, 7}: "full",
	{"c", 1, 8}: "random", {"c", 1, 9}: "urandom", {"c", 1, 11}: "kmsg",
	{"c", 5, 0}: "tty", {"c", 5, 2}: "ptmx",
	{"c", 10, 200}: "net/tun", {"c", 10, 229}: "fuse", {"c", 10, 203}: "cuse",
	{"c", 10, 232}: "kvm", {"c", 10, 238}: "vhost-net", {"c", 10, 241}: "vhost-vsock",
	{"c", 10, 183}: "hwrng", {"c", 10, 236}: "mapper/control", {"c", 10, 237}: "loop-control",
	{"c", 10, 235}: "autofs", {"c", 10, 234}: "btrfs-control", {"c", 10, 223}: "uinput",
	{"c", 108, 0}: "ppp",
}

// devices returns those devices of the spec that exist in a machine. One of the
// host's own that was asked for by name is refused. A privileged container's
// client names all of the host's: of these the ones that a machine has none of
// are left out, and the guest gives the container the machine's instead.
func devices(l *specs.Linux) ([]specs.LinuxDevice, []string, error) {
	all := api.AllDevices(l.Resources)
	var out []specs.LinuxDevice
	left := 0
	for _, d := range l.Devices {
		kind := d.Type
		if kind == "u" {
			kind = "c"
		}
		_, ok := portable[deviceNumber{kind, d.Major, d.Minor}]
		switch {
		case ok || kind == "p":
			out = append(out, d)
		case all:
			left++
		default:
			return nil, nil, unsupported("giving the host's device %s (%s %d:%d) to a machine is not implemented: only devices without hardware can be given, for instance /dev/fuse, /dev/net/tun or /dev/kvm",
				d.Path, d.Type, d.Major, d.Minor)
		}
	}
	if left == 0 {
		return out, nil, nil
	}
	if len(out) == 0 {
		// It must not look like a container that asked for no devices.
		out = []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}
	}
	return out, []string{fmt.Sprintf("%d devices of the host are not in the machine: the container gets the machine's devices", left)}, nil
}
