package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// starter is the thread that starts all VMMs. PR_SET_PDEATHSIG fires when the
// thread that forked ends, not its process, so that thread must live as long as
// the process does: a goroutine locked to it that never returns.
var starter = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

// startBound starts cmd such that the kernel kills it when this process ends,
// however that happens. (os/exec itself closes the gap between fork and prctl:
// the child looks whether its parent is still the same.)
//
// With aside it gets a network namespace of its own, without interfaces
// (network_namespaces(7)): what it needs of the network it inherits as files, and
// clients that count the packets in /proc/PID/net/dev of a task's process
// (nerdctl stats) do not count the host's.
//
// With ns it runs in that namespace instead.
func startBound(cmd *exec.Cmd, aside bool, ns *os.File) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		// A terminal's interrupt is for us to handle.
		Setpgid: true,
	}
	if aside && ns == nil {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	}
	result := make(chan error)
	starter() <- func() { result <- inNamespace(ns, cmd.Start) }
	return <-result
}

// inNamespace calls f with the thread in a network namespace, if one is given. The
// caller has locked the thread.
func inNamespace(ns *os.File, f func() error) error {
	if ns == nil {
		return f()
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the machine's network namespace: %w", err)
	}
	err = f()
	// Whoever is started by this thread later must not be there too.
	return errors.Join(err, unix.Setns(int(own.Fd()), unix.CLONE_NEWNET))
}
