package vmmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/applevm/applevm/internal/treelist"
)

func listTree(t testing.TB, dir string) []string {
	t.Helper()
	lines, err := treelist.List(dir, treelist.Options{SkipXattr: func(name string) bool { return !strings.HasPrefix(name, "user.") }})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// openBelow returns this process's open files in dir.
func openBelow(t testing.TB, dir string) (open []string) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, dir) {
			open = append(open, name)
		}
	}
	return open
}
