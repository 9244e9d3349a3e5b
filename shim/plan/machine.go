package plan

import (
	"fmt"
	"strconv"

	"github.com/docker/go-units"

	"github.com/applevm/applevm/vmm"
)

// Annotations of a container that override the configured machine.
const (
	AnnotationCPUs   = "dev.applevm.cpus"
	AnnotationMemory = "dev.applevm.memory"
)

const (
	mib       = 1 << 20
	minMemory = 128 * mib
	maxCPUs   = 64
)

// machine decides the machine's size and what it boots.
func machine(in Input, annotations map[string]string) (vmm.Config, error) {
	cfg := vmm.Config{
		Name:    in.Namespace + "/" + in.ID,
		CPUs:    in.Machine.CPUs,
		Memory:  in.Machine.MemoryMiB * mib,
		Kernel:  in.Boot.Kernel,
		Initrd:  in.Boot.Initrd,
		Cmdline: in.Boot.Cmdline,
	}
	if s, ok := annotations[AnnotationCPUs]; ok {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxCPUs {
			return cfg, invalid("annotation %s is %q: use a number from 1 to %d", AnnotationCPUs, s, maxCPUs)
		}
		cfg.CPUs = n
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = max(1, in.Host.DefaultCPUs)
	}
	setBy := "machine.memory_mib in the configuration"
	if s, ok := annotations[AnnotationMemory]; ok {
		n, err := units.RAMInBytes(s)
		if err != nil || n < minMemory || n > 1<<50 {
			return cfg, invalid("annotation %s is %q: use a size of at least %s, for instance 768MiB or 1GiB",
				AnnotationMemory, s, units.BytesSize(minMemory))
		}
		cfg.Memory = (n + mib - 1) / mib * mib
		setBy = "annotation " + AnnotationMemory
	}
	if in.Host.Memory > 0 && cfg.Memory > in.Host.Memory {
		return cfg, fmt.Errorf("%w: machine %s is to have %s, the host has %s: lower %s",
			vmm.ErrInsufficientMemory, cfg.Name, units.BytesSize(float64(cfg.Memory)), units.BytesSize(float64(in.Host.Memory)), setBy)
	}
	return cfg, nil
}
