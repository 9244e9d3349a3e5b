package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/applevm/applevm/vmm"
)

// checkMemory refuses what the host could never give. What it cannot give just
// now is found by QEMU, or not at all: memory is only taken as the guest uses it.
func checkMemory(want int64) error {
	total, err := memTotal()
	if err != nil {
		return fmt.Errorf("look up the host's memory: %w", err)
	}
	if want > total {
		return fmt.Errorf("the machine asks for %d MiB, the host has %d MiB: %w; give the machine less",
			want>>20, total>>20, vmm.ErrInsufficientMemory)
	}
	return nil
}

// memTotal is the host's memory in bytes (proc(5), /proc/meminfo).
func memTotal() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemTotal")
}

// bootID tells one boot of the host from another.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// defaultCacheDir is where findings about the host are kept: the user's cache
// directory or, for daemons without a HOME, root's or a private one in /tmp.
func defaultCacheDir() string {
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "applevm")
	}
	if os.Getuid() == 0 {
		return "/var/cache/applevm"
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("applevm-%d", os.Getuid()))
}
