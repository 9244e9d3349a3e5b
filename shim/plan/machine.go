package plan

import (
	"fmt"
	"strconv"

	"github.com/docker/go-units"

	"github.com/applevm/applevm/vmm"
)

// Annotations of a container that override all else that decides its machine's
// size.
const (
	AnnotationCPUs   = "dev.applevm.cpus"
	AnnotationMemory = "dev.applevm.memory"
)

const (
	mib       = 1 << 20
	minMemory = 128 * mib
	maxMemory = 1 << 50
	maxCPUs   = 64
)

// Size is a machine's size. As a wish, a zero field means: no wish.
type Size struct {
	// CPUs is the number of virtual CPUs.
	CPUs int
	// Memory is the size of the guest's memory in bytes.
	Memory int64
}

// What a guest needs for itself, which containers cannot use:
// docs/configuration.md says how it was measured. A part does not depend on the
// machine's size (kernel, agent, initramfs), another grows with it (the kernel's
// description of each page, what it keeps free).
const (
	fixedOverhead = 112 * mib
	growth        = 16 // one byte of so many
)

// Usable is how much of the memory containers can use, in bytes.
func (s Size) Usable() int64 {
	return max(0, s.Memory-s.Memory/growth-fixedOverhead)
}

// memoryFor is the memory of a machine in which usable bytes are left to
// containers, a multiple of 2 MiB, which is a large page's size.
func memoryFor(usable int64) int64 {
	const page = 2 * mib
	// usable ≤ m - m/growth - fixed
	m := (usable+fixedOverhead)*growth/(growth-1) + 1
	return (m + page - 1) / page * page
}

// machineSize decides the machine's size. The strongest of these decides: annotation,
// the runtime's options, the container's limits, the configuration.
func machineSize(in Input, l Limits, annotations map[string]string) (s Size, warnings []string, err error) {
	cpusBy, memoryBy := "machine.cpus in the configuration", "machine.memory_mib in the configuration"
	s = Size{CPUs: in.Machine.CPUs, Memory: in.Machine.MemoryMiB * mib}
	if s.CPUs == 0 {
		s.CPUs = max(1, in.Host.DefaultCPUs)
	}

	switch {
	case l.CPUSet > 0:
		s.CPUs, cpusBy = min(l.CPUSet, maxCPUs), "the container's set of CPUs"
		if in.Host.CPUs > 0 {
			s.CPUs = min(s.CPUs, in.Host.CPUs)
		}
	case l.MilliCPUs > 0:
		n := min(int((l.MilliCPUs+999)/1000), maxCPUs)
		if in.Host.CPUs > 0 {
			n = min(n, in.Host.CPUs) // a limit that cannot be reached harms nobody
		}
		s.CPUs, cpusBy = n, "the container's limit of CPU time"
	}
	if l.Memory > 0 {
		s.Memory, memoryBy = memoryFor(min(l.Memory, maxMemory)), "the container's memory limit"
		if in.Host.Memory > 0 && s.Memory > in.Host.Memory {
			warnings = append(warnings, fmt.Sprintf("the container's memory limit of %s is more than the host's memory: its machine gets %s",
				units.BytesSize(float64(l.Memory)), units.BytesSize(float64(in.Host.Memory))))
			s.Memory = in.Host.Memory / mib * mib
		}
	} else if m := memoryFor(min(l.Reservation, maxMemory)); l.Reservation > 0 && m > s.Memory {
		s.Memory, memoryBy = m, "the container's memory reservation"
	}

	if in.Wish.CPUs > 0 {
		s.CPUs, cpusBy = in.Wish.CPUs, "machine.cpus in the runtime's options"
	}
	if in.Wish.Memory > 0 {
		s.Memory, memoryBy = in.Wish.Memory, "machine.memory_mib in the runtime's options"
	}
	if in.Host.CPUs > 0 && s.CPUs > in.Host.CPUs {
		warnings = append(warnings, fmt.Sprintf("%s asks for %d virtual CPUs, the host has %d: the machine gets %d (annotation %s can give it more)",
			cpusBy, s.CPUs, in.Host.CPUs, in.Host.CPUs, AnnotationCPUs))
		s.CPUs = in.Host.CPUs
	}

	if t, ok := annotations[AnnotationCPUs]; ok {
		n, err := strconv.Atoi(t)
		if err != nil || n < 1 || n > maxCPUs {
			return s, nil, invalid("annotation %s is %q: use a number from 1 to %d", AnnotationCPUs, t, maxCPUs)
		}
		s.CPUs, cpusBy = n, "annotation "+AnnotationCPUs
	}
	if t, ok := annotations[AnnotationMemory]; ok {
		n, err := units.RAMInBytes(t)
		if err != nil || n < minMemory || n > maxMemory {
			return s, nil, invalid("annotation %s is %q: use a size of at least %s, for instance 768MiB or 1GiB",
				AnnotationMemory, t, units.BytesSize(minMemory))
		}
		s.Memory, memoryBy = (n+mib-1)/mib*mib, "annotation "+AnnotationMemory
	}

	switch {
	case s.CPUs > maxCPUs:
		return s, nil, invalid("%s asks for %d virtual CPUs: a machine has at most %d", cpusBy, s.CPUs, maxCPUs)
	case in.Host.Memory > 0 && s.Memory > in.Host.Memory:
		return s, nil, fmt.Errorf("%w: machine %s is to have %s, the host has %s: lower %s", vmm.ErrInsufficientMemory,
			name(in), units.BytesSize(float64(s.Memory)), units.BytesSize(float64(in.Host.Memory)), memoryBy)
	}
	if l.Memory > s.Usable() && l.Memory <= in.Host.Memory {
		warnings = append(warnings, fmt.Sprintf("the container's memory limit of %s cannot be reached: %s gives its machine %s, of which it can use %s",
			units.BytesSize(float64(l.Memory)), memoryBy, units.BytesSize(float64(s.Memory)), units.BytesSize(float64(s.Usable()))))
	}
	return s, warnings, nil
}

func name(in Input) string { return in.Namespace + "/" + in.ID }

// machine is the machine that the container gets, without its disks.
func machine(in Input, s Size) vmm.Config {
	return vmm.Config{
		Name:    name(in),
		CPUs:    s.CPUs,
		Memory:  s.Memory,
		Kernel:  in.Boot.Kernel,
		Initrd:  in.Boot.Initrd,
		Cmdline: in.Boot.Cmdline,
	}
}
