package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Starved implements vmm.Starver: the time that QEMU's threads and this process's,
// which serve its devices, have waited for a processor of the host, all together,
// because most of the time they wait for one another. It is 0 if the kernel does not
// say (/proc/PID/schedstat, Documentation/scheduler/sched-stats.rst in the kernel's
// source: the second number, in nanoseconds).
func (m *machine) Starved() time.Duration {
	var sum int64
	for _, pid := range []int{m.PID(), os.Getpid()} {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				continue // the thread has ended
			}
			fields := strings.Fields(string(text))
			if len(fields) < 2 {
				continue
			}
			if ns, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				sum += ns
			}
		}
	}
	return time.Duration(sum)
}
