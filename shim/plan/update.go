package plan

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
)

// Update checks new limits for a running container, the JSON of an OCI
// LinuxResources, against its machine's size. current are the limits in force.
// It returns the JSON for the guest, the limits that are in force when the guest
// has taken it, and warnings for the log.
//
// Clients send all limits anew, not only those that change. So one that is beyond
// the machine is no error as long as it is not raised.
func Update(b []byte, s Size, current Limits) ([]byte, Limits, []string, error) {
	if len(b) > api.MaxSpec {
		return nil, current, nil, invalid("the resources have %d bytes, more than %d", len(b), api.MaxSpec)
	}
	var r specs.LinuxResources
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, current, nil, invalid("the resources are no JSON of an OCI LinuxResources: %w", err)
	}
	asked, err := limitsOf(&r)
	if err != nil {
		return nil, current, nil, err
	}
	for _, m := range []struct {
		what           string
		asked, current int64
	}{{"memory limit", asked.Memory, current.Memory}, {"memory reservation", asked.Reservation, current.Reservation}} {
		if m.asked > s.Usable() && m.asked != m.current {
			return nil, current, nil, invalid("a %s of %s is beyond the container's machine, which was made with %s, of which containers can use %s: "+
				"make the container anew with that limit (--memory) or with annotation %s",
				m.what, units.BytesSize(float64(m.asked)), units.BytesSize(float64(s.Memory)), units.BytesSize(float64(s.Usable())), AnnotationMemory)
		}
	}
	if asked.MilliCPUs > int64(s.CPUs)*1000 && asked.MilliCPUs != current.MilliCPUs {
		return nil, current, nil, invalid("a limit of %s CPUs is beyond the container's machine, which was made with %d virtual CPUs: "+
			"make the container anew with that limit (--cpus) or with annotation %s", cpus(asked.MilliCPUs), s.CPUs, AnnotationCPUs)
	}
	if asked.CPUSet > s.CPUs && asked.CPUSet != current.CPUSet {
		return nil, current, nil, invalid("a set of %d CPUs is beyond the container's machine, which was made with %d virtual CPUs: "+
			"make the container anew with that set (--cpuset-cpus) or with annotation %s", asked.CPUSet, s.CPUs, AnnotationCPUs)
	}
	g, warnings, err := resources(&r, s.CPUs)
	if err != nil {
		return nil, current, nil, err
	}
	if asked.CPUSet > 0 && r.CPU != nil && g.CPU.Cpus == "" {
		g.CPU.Cpus = fmt.Sprintf("0-%d", s.CPUs-1) // all: an earlier set may have been smaller
	}
	g.Devices = nil // an update never changes what devices a container may use
	out, err := json.Marshal(g)
	return out, current.with(&r, asked), warnings, err
}

// with returns the limits in force after an update: what it names is as asked.
func (l Limits) with(r *specs.LinuxResources, asked Limits) Limits {
	_, unifiedMax := r.Unified["memory.max"]
	if unifiedMax || r.Memory != nil && r.Memory.Limit != nil {
		l.Memory = asked.Memory
	}
	_, unifiedLow := r.Unified["memory.low"]
	if unifiedLow || r.Memory != nil && r.Memory.Reservation != nil {
		l.Reservation = asked.Reservation
	}
	_, unifiedCPU := r.Unified["cpu.max"]
	if unifiedCPU || r.CPU != nil && r.CPU.Quota != nil {
		l.MilliCPUs = asked.MilliCPUs
	}
	if asked.CPUSet > 0 {
		l.CPUSet = asked.CPUSet
	}
	return l
}

// cpus shows thousandths of CPUs: 1.5, 2.
func cpus(milli int64) string {
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%d.%03d", milli/1000, milli%1000), "0"), ".")
}
