package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// peakRSS returns the largest resident memory of a process so far, in MiB. The
// rusage of wait4 would not do: a child's begins with what its parent had when it
// forked, and so says more of the bench than of what is measured.
func peakRSS(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("no VmHWM in the process's status")
}
