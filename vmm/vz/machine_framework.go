//go:build (darwin && cgo) || vzsim

package vz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/Code-Hex/vz/v3"

	"github.com/applevm/applevm/internal/imagelock"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/internal/console"
	"github.com/applevm/applevm/vmm/pathwatch"
)

const (
	consoleSize = 64 << 10
	// Deadlines of the framework's completion handlers.
	startTimeout = time.Minute
	callTimeout  = 30 * time.Second
	stopTimeout  = 10 * time.Second
)

type machine struct {
	plan    *plan
	console *console.Tail
	ports   *ports
	shares  *pathwatch.Watcher
	done    chan struct{}

	mu      sync.Mutex
	started bool // Start was called, or Stop or Kill instead of it
	asked   bool // Stop or Kill was called
	vm      *vz.VirtualMachine
	keep    files
	locks   []*imagelock.Lock // of the disks
	screen  *os.File          // the end of the console's pipe that the framework writes to
	read    chan struct{}     // closed when nothing more comes from it
	err     error
	// identifier is the machine's for the framework, once it has one.
	identifier []byte
	ended      sync.Once
}

func newMachine(p *plan) *machine {
	return &machine{plan: p, console: &console.Tail{Limit: consoleSize}, ports: newPorts(), shares: pathwatch.New(p.Shares), done: make(chan struct{})}
}

// Start implements vmm.Machine.
func (m *machine) Start(ctx context.Context) error {
	m.mu.Lock()
	if m.started {
		m.mu.Unlock()
		return fmt.Errorf("machine %s: it was started before", m.plan.Name)
	}
	m.started = true
	m.mu.Unlock()
	vm, err := m.build()
	if err == nil {
		err = m.begin(ctx, vm)
	}
	if err != nil {
		if vm != nil {
			_ = await(context.WithoutCancel(ctx), stopTimeout, vm.Stop)
		}
		err = fmt.Errorf("machine %s: start: %w", m.plan.Name, err)
		m.finish(err)
		return err
	}
	m.mu.Lock()
	m.vm = vm
	asked := m.asked
	m.mu.Unlock()
	go m.watch(vm)
	if asked {
		_ = m.Kill()
		return fmt.Errorf("machine %s: it was ended during its start: %w", m.plan.Name, vmm.ErrNotRunning)
	}
	return nil
}

// begin boots the machine, or brings the one back whose state was saved.
func (m *machine) begin(ctx context.Context, vm *vz.VirtualMachine) error {
	if m.plan.Restore != "" {
		return restoreState(ctx, vm, filepath.Join(m.plan.Restore, stateFile))
	}
	return await(ctx, startTimeout, func() error { return vm.Start() })
}

// build makes the framework's machine.
func (m *machine) build() (*vz.VirtualMachine, error) {
	if err := m.lockDisks(); err != nil {
		return nil, err
	}
	if err := m.plan.makeLinks(); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	m.screen, m.read = w, make(chan struct{})
	go func() {
		defer close(m.read)
		defer r.Close()
		_, _ = io.Copy(m.console, r) // until the machine's end
	}()
	id, err := machineIdentifier(m.plan)
	if err != nil {
		return nil, err
	}
	m.identifier = id.DataRepresentation()
	c, err := configure(m.plan, id, w, &m.keep)
	if err != nil {
		return nil, err
	}
	vm, err := vz.NewVirtualMachine(c)
	if err != nil {
		return nil, explain("virtual machine", err)
	}
	devices := vm.SocketDevices()
	if len(devices) != 1 {
		return nil, fmt.Errorf("the framework made %d vsock devices", len(devices))
	}
	return vm, m.ports.attach(devices[0])
}

// lockDisks sees to it that an image has one writer.
func (m *machine) lockDisks() error {
	for _, d := range m.plan.Disks {
		l, err := imagelock.Acquire(imagelock.Dir(), d.Path, d.ReadOnly)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.ID, err)
		}
		m.locks = append(m.locks, l)
	}
	return nil
}

// await waits for a call that ends with a completion handler, at most for timeout. A
// call that is given up goes on by itself.
func await(ctx context.Context, timeout time.Duration, call func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the framework did not answer within %v", timeout))
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- call() }()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watch follows the machine's state until its end.
func (m *machine) watch(vm *vz.VirtualMachine) {
	for state := range vm.StateChangedNotify() {
		switch state {
		case vz.VirtualMachineStateStopped:
			m.endConsole()
			m.finish(m.explainEnd())
			return
		case vz.VirtualMachineStateError:
			m.endConsole()
			m.finish(m.with(fmt.Errorf("machine %s: the framework has ended it because of an internal error", m.plan.Name)))
			return
		}
	}
}

// endConsole waits a moment for the last that the guest has printed.
func (m *machine) endConsole() {
	_ = m.screen.Close()
	select {
	case <-m.read:
	case <-time.After(time.Second): // the framework has it open still
	}
}

// explainEnd says why a machine has stopped, nil if it was meant to.
func (m *machine) explainEnd() error {
	m.mu.Lock()
	asked := m.asked
	m.mu.Unlock()
	if asked {
		return nil
	}
	if end, _ := console.EndOf(m.console.Bytes()); end == console.Panicked {
		return m.with(fmt.Errorf("machine %s: the guest's kernel panicked", m.plan.Name))
	}
	return nil // it has switched itself off
}

func (m *machine) with(err error) error {
	_, said := console.EndOf(m.console.Bytes())
	if lines := console.LastLines(said, 10); lines != "" {
		return fmt.Errorf("%w; the console's last lines:\n%s", err, lines)
	}
	return err
}

// finish releases all that the machine held.
func (m *machine) finish(err error) {
	m.ended.Do(func() {
		m.ports.close()
		m.shares.Close()
		m.mu.Lock()
		keep := m.keep
		m.keep = nil
		m.err = errors.Join(err, m.plan.removeLinks())
		m.mu.Unlock()
		keep.close()
		for _, l := range m.locks {
			l.Release()
		}
		if m.screen != nil {
			_ = m.screen.Close()
		}
		close(m.done)
	})
}

// running returns the framework's machine.
func (m *machine) running() (*vz.VirtualMachine, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
	default:
		if m.vm != nil {
			return m.vm, nil
		}
	}
	return nil, fmt.Errorf("machine %s: %w", m.plan.Name, vmm.ErrNotRunning)
}

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if _, err := m.running(); err != nil {
		return nil, err
	}
	c, err := m.ports.dial(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("machine %s: port %d: %w", m.plan.Name, port, err)
	}
	return c, nil
}

// Listen implements vmm.Machine.
func (m *machine) Listen(port uint32) (net.Listener, error) {
	l, err := m.ports.listen(port)
	if err != nil {
		return nil, fmt.Errorf("machine %s: listen on port %d: %w", m.plan.Name, port, err)
	}
	return l, nil
}

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error {
	return m.call(ctx, "pause", (*vz.VirtualMachine).Pause)
}

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	return m.call(ctx, "resume", (*vz.VirtualMachine).Resume)
}

func (m *machine) call(ctx context.Context, what string, f func(*vz.VirtualMachine) error) error {
	vm, err := m.running()
	if err != nil {
		return err
	}
	if err := await(ctx, callTimeout, func() error { return f(vm) }); err != nil {
		return fmt.Errorf("machine %s: %s: %w", m.plan.Name, what, err)
	}
	return nil
}

// Stop implements vmm.Machine. The framework's stop keeps what the guest has flushed,
// and asks it for nothing: that is the agent's part before.
func (m *machine) Stop(ctx context.Context) error { return m.end(ctx) }

// Kill implements vmm.Machine.
func (m *machine) Kill() error { return m.end(context.Background()) }

func (m *machine) end(ctx context.Context) error {
	m.mu.Lock()
	m.asked = true
	never := !m.started
	m.started = true
	vm := m.vm
	m.mu.Unlock()
	if never {
		m.finish(nil)
		return nil
	}
	if vm == nil { // Start is under way, and ends it
		select {
		case <-m.done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(startTimeout + stopTimeout):
			return fmt.Errorf("machine %s: its start does not end", m.plan.Name)
		}
	}
	select {
	case <-m.done:
		return nil
	default:
	}
	if err := await(ctx, stopTimeout, vm.Stop); err != nil && vm.State() != vz.VirtualMachineStateStopped {
		err = fmt.Errorf("machine %s: stop: %w", m.plan.Name, err)
		m.finish(err) // nothing stronger is left but the end of this process
		return err
	}
	m.finish(nil)
	return nil
}

// Done implements vmm.Machine.
func (m *machine) Done() <-chan struct{} { return m.done }

// Err implements vmm.Machine.
func (m *machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// PID implements vmm.Machine.
func (m *machine) PID() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.vm == nil {
		return 0
	}
	return os.Getpid()
}

// Console implements vmm.Machine.
func (m *machine) Console() []byte { return m.console.Bytes() }
