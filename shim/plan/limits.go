package plan

import (
	"math"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Limits are those of a container's limits that bear on its machine's size. The
// zero value has none.
type Limits struct {
	// Memory is the most memory in bytes, Reservation what the container is to
	// have when others want it too; 0 is none.
	Memory, Reservation int64
	// MilliCPUs is the processor time that the container may use, in
	// thousandths of one CPU; 0 is no limit.
	MilliCPUs int64
	// CPUSet is how many CPUs are in the container's set (see resources); 0 is no
	// set.
	CPUSet int
}

const (
	// defaultPeriod is the scheduling period in µs where none is given
	// (Documentation/admin-guide/cgroup-v2.rst, cpu.max).
	defaultPeriod = 100000
	// unlimited is what clients of cgroup v1 wrote for no limit: the highest
	// multiple of a page of 64 KiB.
	unlimited = math.MaxInt64 &^ (64<<10 - 1)
)

// limitsOf reads a spec's resources. The kernel's own names (unified) win over
// the others, as they do in the guest.
func limitsOf(r *specs.LinuxResources) (Limits, error) {
	var l Limits
	var set string
	if r == nil {
		return l, nil
	}
	if m := r.Memory; m != nil {
		l.Memory, l.Reservation = size(m.Limit), size(m.Reservation)
	}
	if c := r.CPU; c != nil {
		if c.Quota != nil {
			period := uint64(0)
			if c.Period != nil {
				period = *c.Period
			}
			l.MilliCPUs = milliCPUs(*c.Quota, period)
		}
		set = c.Cpus
	}
	if v, ok := r.Unified["memory.max"]; ok {
		l.Memory = number(v)
	}
	if v, ok := r.Unified["memory.low"]; ok {
		l.Reservation = number(v)
	}
	if f := strings.Fields(r.Unified["cpu.max"]); len(f) > 0 {
		period := uint64(0)
		if len(f) > 1 {
			period = uint64(max(0, number(f[1])))
		}
		l.MilliCPUs = milliCPUs(number(f[0]), period)
	}
	if v, ok := r.Unified["cpuset.cpus"]; ok {
		set = v
	}
	if set = strings.TrimSpace(set); set != "" {
		n, err := countCPUs(set)
		if err != nil {
			return l, invalid("the container's CPUs (linux.resources.cpu.cpus): %w", err)
		}
		l.CPUSet = n
	}
	return l, nil
}

// size is a limit in bytes, 0 for one that is none.
func size(p *int64) int64 {
	if p == nil || *p < 0 || *p >= unlimited {
		return 0
	}
	return *p
}

// number reads a value of a cgroup file; "max" and what is no number are 0. The
// guest's kernel says what is wrong with the latter.
func number(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil {
		return 0
	}
	return size(&n)
}

func milliCPUs(quota int64, period uint64) int64 {
	if quota <= 0 {
		return 0
	}
	if period == 0 {
		period = defaultPeriod
	}
	return int64(min(math.Ceil(float64(quota)*1000/float64(period)), math.MaxInt32))
}
