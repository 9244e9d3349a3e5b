package machine

import (
	"runtime"

	"github.com/applevm/applevm/vmm"
)

// maxDefaultCPUs is how many virtual CPUs a machine has at most where nobody
// asked for more.
const maxDefaultCPUs = 2

// accelerated is implemented by drivers that know, before a machine is made,
// whether the hardware will run its guest.
type accelerated interface{ Accelerated() bool }

// DefaultCPUs is the number of virtual CPUs where nobody asked for one. A guest
// that may be emulated gets one: there a second CPU makes the boot much longer
// and the guest no faster.
func DefaultCPUs(drv vmm.Driver) int {
	if a, ok := drv.(accelerated); ok && a.Accelerated() {
		return min(maxDefaultCPUs, runtime.NumCPU())
	}
	return 1
}
