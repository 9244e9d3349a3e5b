package stack

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Process is a process on the host that belongs to a stack.
type Process struct {
	PID  int
	Name string
	Args []string
}

func (p Process) String() string { return fmt.Sprintf("%s (pid %d)", p.Name, p.PID) }

// Processes returns the stack's shims and virtual machine monitors: everything
// but its daemons, the clients that run now and its watchdog.
func (s *Stack) Processes() []Process {
	return slices.DeleteFunc(s.processes(), func(p Process) bool {
		if s.watchdog != nil && p.PID == s.watchdog.pid() {
			return true
		}
		for _, d := range s.daemons {
			if p.PID == d.cmd.Process.Pid {
				return true
			}
		}
		return p.Name == "ctr" || p.Name == "nerdctl"
	})
}

// VMMs returns the processes in which the stack's machines run: virtual machine monitors, and
// on macOS, whose framework runs a machine in the process that made it, the shims.
func (s *Stack) VMMs() []Process {
	if runtime.GOOS == "darwin" {
		return s.Shims()
	}
	return slices.DeleteFunc(s.Processes(), func(p Process) bool { return !strings.HasPrefix(p.Name, "qemu-system") })
}

// Shims returns the stack's shims.
func (s *Stack) Shims() []Process {
	return slices.DeleteFunc(s.Processes(), func(p Process) bool { return !strings.HasPrefix(p.Name, "containerd-shim") })
}

// processes finds all processes that have the stack's directory in their
// arguments or environment.
func (s *Stack) processes() []Process {
	var ps []Process
	for _, c := range commands() {
		if c.pid == os.Getpid() || !strings.Contains(c.all, s.Dir+"/") || s.watchdog != nil && c.pid == s.watchdog.pid() {
			continue
		}
		ps = append(ps, Process{PID: c.pid, Name: filepath.Base(c.args[0]), Args: c.args})
	}
	return ps
}

// command is what a process was started with.
type command struct {
	pid  int
	args []string
	all  string // the environment, too
}

// mounts returns the mount points under the stack's directory, innermost first.
func (s *Stack) mounts() []string {
	b, _ := os.ReadFile("/proc/self/mounts")
	var found []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], s.Dir+"/") {
			found = append(found, f[1])
		}
	}
	slices.Reverse(found)
	return found
}

// Leftovers lists what running containers have left: processes, sockets,
// mounts, bundles and snapshots of containers. After the last container is removed there
// must be nothing.
func (s *Stack) Leftovers() []string {
	var left []string
	for _, p := range s.Processes() {
		left = append(left, "process "+p.String())
	}
	for _, m := range s.mounts() {
		// The snapshotter's own, as long as it runs.
		if m != s.path("snapshots", "view") {
			left = append(left, "mount "+m)
		}
	}
	_ = filepath.WalkDir(s.path("state"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(path, s.path("state", "io.containerd.runtime.v2.task", Namespace)+"/") {
			left = append(left, "bundle "+path)
			return fs.SkipDir
		}
		return nil
	})
	for _, dir := range []string{"s", "tmp"} {
		_ = filepath.WalkDir(s.path(dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type()&fs.ModeSocket != 0 {
				left = append(left, "socket "+path)
			}
			return nil
		})
	}
	// Directories of machines and of shared networks; containerd's own sockets have
	// hexadecimal names.
	dirs, _ := filepath.Glob(s.path("s", "[mn]*"))
	for _, d := range dirs {
		left = append(left, "directory "+d)
	}
	// Every active snapshot has its writable image; images' layers have none.
	images, _ := filepath.Glob(s.path("snapshots", "snapshots", "*", "rw.img"))
	for _, i := range images {
		left = append(left, "snapshot "+filepath.Dir(i))
	}
	return left
}

// Clean waits until containers have left nothing, and returns what is there
// after all: containerd removes snapshots by garbage collection, a moment after
// their containers.
func (s *Stack) Clean(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		left := s.Leftovers()
		if len(left) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return left
		case <-time.After(20 * time.Millisecond):
		}
	}
}
