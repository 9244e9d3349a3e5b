package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/agent/agenttest"
)

// The tests run the agent as it runs in a machine: as root and PID 1, of
// namespaces of their own, with /run, /proc and /sys/fs/cgroup of their own.
// Everything they make is in the tmpfs on /run or in the namespaces, so that
// nothing is left however they end, but for empty cgroups, which the next run removes.

const insideEnv = "APPLEVM_AGENT_TEST_INSIDE"

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, "set the test's namespaces up:", err)
			os.Exit(1)
		}
		code := m.Run()
		removeCgroups()
		os.Exit(code)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "guest/agent: these tests make namespaces, mounts and cgroups: run them as root")
		os.Exit(1)
	}
	os.Exit(reexec())
}

func reexec() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	return 0
}

func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	for _, m := range []struct{ fsType, dir string }{
		{"proc", "/proc"}, {"tmpfs", "/run"}, {"cgroup2", "/sys/fs/cgroup"},
	} {
		if err := unix.Mount(m.fsType, m.dir, m.fsType, 0, ""); err != nil {
			return fmt.Errorf("%s: %w", m.dir, err)
		}
	}
	removeCgroups()
	return nil
}

func removeCgroups() {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/" + agenttest.Prefix + "*")
	for _, d := range dirs {
		_ = os.Remove(d) // fails for one in use
	}
}

// mountsBelow lists the mount points below dir.
func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/mountinfo") // the first thread may be locked to another namespace for good
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			found = append(found, f[4])
		}
	}
	return found
}
