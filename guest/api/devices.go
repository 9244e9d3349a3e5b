package api

import (
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// AllDevices tells whether a container may use every device, as a privileged one
// may: by the last rule that is about all of them. If such a container's spec
// names devices at all, the guest gives it all those of the machine instead.
func AllDevices(r *specs.LinuxResources) bool {
	if r == nil {
		return false
	}
	all := false
	for _, d := range r.Devices {
		wild := (d.Type == "" || d.Type == "a") && anyNumber(d.Major) && anyNumber(d.Minor)
		if wild {
			all = d.Allow && strings.Contains(d.Access, "r") && strings.Contains(d.Access, "w") && strings.Contains(d.Access, "m")
		}
	}
	return all
}

// anyNumber tells whether a device rule's number stands for all: -1 does, as
// well as none (runtime-spec, config-linux.md, "Allowed Device list").
func anyNumber(n *int64) bool { return n == nil || *n < 0 }
