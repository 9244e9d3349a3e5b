package agent

import (
	"context"
	"fmt"
	"math"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/agent/taskpb"
)

// process is a container's first process, whose id is empty, or an exec.
type process struct {
	id        string
	container *container
	spec      *specs.Process
	names     stdioNames

	// startMu is held while the process starts: two starts must not run at once,
	// and everything else must not wait for one.
	startMu sync.Mutex

	mu     sync.Mutex
	status taskpb.Status
	proc   *libcontainer.Process
	pid    int
	stdio  *stdio

	exited   chan struct{} // closed after the two below are set
	code     uint32
	exitedAt time.Time
}

func newProcess(c *container, id string, spec *specs.Process, names stdioNames) *process {
	return &process{
		id: id, container: c, spec: spec, names: names,
		status: taskpb.Status_CREATED, exited: make(chan struct{}),
	}
}

// launch has libcontainer make the process, whose streams are s, and watches
// over it from then on. On an error s is given up.
func (p *process) launch(lc *libcontainer.Container, s *stdio, first bool) error {
	proc, err := libcontainerProcess(p.spec)
	if err != nil {
		s.abort()
		return err
	}
	proc.Init = first
	if err := s.attach(proc, p.container.ids); err != nil {
		s.abort()
		return err
	}
	end := p.container.agent.reaper.starting()
	defer end()
	if err := lc.Start(proc); err != nil {
		s.abort()
		return err
	}
	pid, err := proc.Pid()
	if err == nil {
		p.container.agent.reaper.own(pid)
		err = s.started()
	}
	if err != nil {
		_ = proc.Signal(unix.SIGKILL)
		_, _ = proc.Wait()
		p.container.agent.reaper.disown(pid)
		s.abort()
		return err
	}
	p.mu.Lock()
	p.proc, p.pid, p.stdio = proc, pid, s
	if !first {
		p.status = taskpb.Status_RUNNING
	}
	p.mu.Unlock()
	go p.watch()
	return nil
}

// watch waits for the process's end.
func (p *process) watch() {
	state, _ := p.proc.Wait() // an error tells of the exit code, which state has
	p.container.agent.reaper.disown(p.pid)
	p.stdio.closeIn()
	if p.id == "" {
		p.container.killRest()
		p.container.daemon.stop()
	}
	p.stdio.exited()
	if p.id == "" {
		// Whoever hears of the exit may read the disk: what the container has
		// written must be on it, as it would be on the host under runc. But the
		// exit is told, however slow the disk is.
		if err := p.container.freeze(exitFreezeTimeout); err != nil {
			logrus.Errorf("container %s: %v", p.container.id, err)
		}
	}
	p.container.noteMemory()
	p.setExited(exitCode(state))
}

func (p *process) setExited(code uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status, p.code, p.exitedAt = taskpb.Status_STOPPED, code, time.Now()
	close(p.exited)
}

// exitCode is a process's exit code as shells and runc give it: 128 and the
// signal's number if it was killed by one.
func exitCode(s *os.ProcessState) uint32 {
	if s == nil {
		return 255
	}
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + uint32(ws.Signal())
	}
	return uint32(s.ExitCode())
}

// wait returns when the process has exited. What it wrote may still be on its way.
func (p *process) wait(ctx context.Context) (uint32, time.Time, error) {
	select {
	case <-p.exited:
		return p.code, p.exitedAt, nil
	case <-ctx.Done():
		return 0, time.Time{}, ctx.Err()
	}
}

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// kill sends a signal.
func (p *process) kill(sig unix.Signal) error {
	p.mu.Lock()
	proc, status := p.proc, p.status
	p.mu.Unlock()
	if status == taskpb.Status_STOPPED {
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	if proc == nil {
		return fmt.Errorf("process %q is not started: %w", p.id, errdefs.ErrFailedPrecondition)
	}
	if sig == unix.SIGKILL {
		p.container.thawForEnd()
	}
	return finished(proc.Signal(sig))
}

// closeIO ends the process's stdin.
func (p *process) closeIO() {
	p.mu.Lock()
	s := p.stdio
	p.mu.Unlock()
	if s != nil {
		s.closeInput()
	}
}

func (p *process) resize(width, height uint32) error {
	if width > math.MaxUint16 || height > math.MaxUint16 {
		return invalid("a terminal of %d by %d is too large", width, height)
	}
	p.mu.Lock()
	s, status := p.stdio, p.status
	p.mu.Unlock()
	if !p.names.terminal {
		return fmt.Errorf("the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	if s == nil || status == taskpb.Status_STOPPED {
		return nil // its size does not matter
	}
	return s.resize(uint16(width), uint16(height))
}
