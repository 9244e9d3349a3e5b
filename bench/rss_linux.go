package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// peakRSS returns the largest resident memory of a process so far, in MiB. The
// rusage of wait4 would not do: a child's begins with what its parent had when it
// forked, and so says more of the bench than of what is measured.
func peakRSS(pid int) (float64, error) {
	return procMiB(pid, "status", "VmHWM")
}

// usage is the memory of a process, in MiB.
type usage struct {
	// rss is what is resident; pss counts a page that n processes share as 1/n of it.
	rss, pss float64
}

func memory(pid int) (usage, error) {
	rss, err := procMiB(pid, "smaps_rollup", "Rss")
	if err != nil {
		return usage{}, err
	}
	pss, err := procMiB(pid, "smaps_rollup", "Pss")
	return usage{rss, pss}, err
}

// procMiB reads a value in kB of a file of the process in /proc.
func procMiB(pid int, file, name string) (float64, error) {
	path := fmt.Sprintf("/proc/%d/%s", pid, file)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}
