package qemu

import (
	"os"
	"runtime"
	"strconv"
	"strings"
)

// busyThreads is how many threads want each processor of a host that is busy.
const busyThreads = 3

// isBusy reports whether so many threads want the host's processors, now or in the last
// minute, that one may wait for long (proc_loadavg(5)).
func isBusy() bool {
	text, err := os.ReadFile("/proc/loadavg")
	return err == nil && tooManyThreads(string(text), runtime.NumCPU())
}

func tooManyThreads(loadavg string, cpus int) bool {
	f := strings.Fields(loadavg)
	if len(f) < 4 {
		return false
	}
	load, _ := strconv.ParseFloat(f[0], 64)
	running, _, _ := strings.Cut(f[3], "/")
	now, _ := strconv.Atoi(running)
	return load >= float64(busyThreads*cpus) || now >= busyThreads*cpus
}
