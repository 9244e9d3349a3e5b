package stack

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// commands lists the host's processes (proc(5)).
func commands() []command {
	var all []command
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		all = append(all, command{pid, args, string(cmdline) + string(environ)})
	}
	return all
}
