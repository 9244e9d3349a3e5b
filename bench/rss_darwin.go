package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// peakRSS returns the largest resident memory of a process so far, in MiB. Of
// another process than this one macOS tells only the present one.
func peakRSS(pid int) (float64, error) {
	if pid == os.Getpid() {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			return 0, err
		}
		return float64(r.Maxrss) / (1 << 20), nil // bytes on macOS
	}
	out, err := exec.Command("ps", "-o", "rss=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return 0, fmt.Errorf("ps: %w", err)
	}
	kib, err := strconv.ParseFloat(string(bytes.TrimSpace(out)), 64)
	return kib / 1024, err
}

// usage is the memory of a process, in MiB.
type usage struct{ rss, pss float64 }

// memory is for rows that are left out on macOS.
func memory(int) (usage, error) { return usage{}, errors.ErrUnsupported }
