package plan

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// resources returns the limits as they hold in a machine with the given number
// of CPUs. What numbers the host's CPUs, memory nodes or block devices is
// translated or refused: those of the machine are others.
func resources(r *specs.LinuxResources, cpus int) (*specs.LinuxResources, []string, error) {
	if r == nil {
		return nil, nil, nil
	}
	g := *r
	var warnings []string
	if r.CPU != nil {
		cpu := *r.CPU
		g.CPU = &cpu
		if cpu.Cpus != "" {
			n, err := countCPUs(cpu.Cpus)
			if err != nil {
				return nil, nil, invalid("the container's CPUs (linux.resources.cpu.cpus): %w", err)
			}
			// Which of the host's CPUs run the machine is the host's to decide; in
			// the machine the container gets as many as the set has.
			cpu.Cpus = ""
			if n < cpus {
				cpu.Cpus = fmt.Sprintf("0-%d", n-1)
			}
			warnings = append(warnings, fmt.Sprintf("the CPU set %q is that of the host: the container gets %d of its machine's %d CPUs", r.CPU.Cpus, min(n, cpus), cpus))
		}
		if cpu.Mems != "" && cpu.Mems != "0" {
			warnings = append(warnings, fmt.Sprintf("the memory nodes %q have no effect: a machine has one", cpu.Mems))
			cpu.Mems = ""
		}
	}
	if b := r.BlockIO; b != nil {
		for _, d := range b.WeightDevice {
			return nil, nil, hostBlockDevice("I/O weight", d.Major, d.Minor)
		}
		for _, l := range [][]specs.LinuxThrottleDevice{b.ThrottleReadBpsDevice, b.ThrottleWriteBpsDevice, b.ThrottleReadIOPSDevice, b.ThrottleWriteIOPSDevice} {
			for _, d := range l {
				return nil, nil, hostBlockDevice("I/O limit", d.Major, d.Minor)
			}
		}
	}
	if r.Network != nil {
		warnings = append(warnings, "network classes and priorities (cgroup v1) have no effect in a machine")
		g.Network = nil
	}
	return &g, warnings, nil
}

func hostBlockDevice(what string, major, minor int64) error {
	return unsupported("the %s of the block device %d:%d is not implemented: it is one of the host's, and the container's disks are the machine's", what, major, minor)
}

// maxListedCPU is the highest CPU number that a list may have: Linux has at
// most 8192 (CONFIG_NR_CPUS).
const maxListedCPU = 8191

// countCPUs counts the CPUs of a list such as "0-2,7" (cpuset(7), "List format").
func countCPUs(list string) (int, error) {
	set := map[int]bool{}
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || a > b || b > maxListedCPU {
			return 0, fmt.Errorf("%q is no list of CPUs", list)
		}
		for i := a; i <= b; i++ {
			set[int(i)] = true
		}
	}
	return len(set), nil
}
