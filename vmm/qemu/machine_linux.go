package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/internal/console"
	"github.com/applevm/applevm/vmm/vhostuser"
	"github.com/applevm/applevm/vmm/virtiofs"
	"github.com/applevm/applevm/vmm/vsock"
)

const (
	consoleSize = 64 << 10
	stderrSize  = 8 << 10
	// termTimeout is how long QEMU may take to end in an orderly way. It
	// ignores SIGTERM while it waits for a vhost-user device.
	termTimeout = 10 * time.Second
	// killTimeout is how long the kernel may take to end a killed process.
	killTimeout = 10 * time.Second
)

type machine struct {
	drv     *driver
	cfg     vmm.Config
	vsock   *vsock.Device
	console *console.Tail
	stderr  *console.Tail
	done    chan struct{}

	mu      sync.Mutex
	started bool // Start was called, or Stop or Kill instead of it
	asked   bool // Stop or Kill was called
	cmd     *exec.Cmd
	monitor *monitor
	watcher *virtiofs.Watcher // of the shares
	fault   error             // what the guest did to its vsock device or its shares
	turn    *os.File          // to boot, see takeTurn
	err     error
}

func newMachine(d *driver, cfg vmm.Config) *machine {
	return &machine{
		drv: d, cfg: cfg, vsock: vsock.New(),
		console: &console.Tail{Limit: consoleSize}, stderr: &console.Tail{Limit: stderrSize},
		done: make(chan struct{}),
	}
}

// Start implements vmm.Machine.
func (m *machine) Start(ctx context.Context) error {
	m.mu.Lock()
	if m.started {
		m.mu.Unlock()
		return fmt.Errorf("machine %s: it was started before", m.cfg.Name)
	}
	m.started = true
	m.mu.Unlock()

	p, err := m.prepare(ctx)
	if err != nil {
		return m.fail(err)
	}
	if p.accel == "tcg" {
		if err := m.takeTurn(ctx); err != nil {
			return m.fail(err)
		}
	}
	server, err := m.launch(p)
	if err != nil {
		return m.fail(err)
	}
	select {
	case <-server.Attached():
		return nil
	case <-m.done:
		if err := m.Err(); err != nil {
			return err
		}
		return fmt.Errorf("machine %s: it was ended during its start: %w", m.cfg.Name, vmm.ErrNotRunning)
	case <-ctx.Done():
		_ = m.Kill()
		return fmt.Errorf("machine %s: start: %w", m.cfg.Name, ctx.Err())
	}
}

// fail ends a machine whose process was never started.
func (m *machine) fail(err error) error {
	err = fmt.Errorf("machine %s: %w", m.cfg.Name, err)
	m.finish(err)
	return err
}

func (m *machine) finish(err error) {
	m.endTurn()
	_ = m.vsock.Close()
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
	close(m.done)
}

// prepare finds out all that the command line needs, and what would make it fail.
func (m *machine) prepare(ctx context.Context) (plan, error) {
	p := plan{Config: m.cfg}
	var err error
	if p.binary, err = m.drv.findBinary(p.Arch); err != nil {
		return p, err
	}
	if err := checkFiles(p.Config); err != nil {
		return p, err
	}
	if err := checkMemory(p.Memory); err != nil {
		return p, err
	}
	if p.Arch == archAMD64 {
		if p.mmioParameter, err = m.drv.cache.mmioParameter(p.Kernel); err != nil {
			return p, err
		}
		if p.Arch == hostArch() {
			p.tscKHz = m.drv.cache.tscKHz()
			p.busy = isBusy()
		}
	}
	if p.jail, err = m.drv.jailOption(ctx, p.binary); err != nil {
		return p, err
	}
	if p.accel, err = m.drv.accelerator(ctx, p); err != nil {
		return p, fmt.Errorf("choose an accelerator: %w", err)
	}
	return p, nil
}

// launch starts QEMU and all that serves it. The server that it returns is that of
// the device that QEMU makes last.
func (m *machine) launch(p plan) (*vhostuser.Server, error) {
	devs, err := newDevices(m.vsock, p.Shares, m.drv.opts.ShareServer, m.reportFault)
	if err != nil {
		return nil, err
	}
	started := false
	defer func() {
		devs.closeTheirs()
		if !started {
			_ = devs.close()
		}
	}()
	mon, listener, err := newMonitor(m.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	jail := p.Root
	if jail == nil {
		if jail, err = newJail(); err != nil {
			return nil, errors.Join(err, mon.close())
		}
		if jail == nil {
			p.jail = ""
		} else {
			defer jail.Close()
		}
	}
	cmd := exec.Command(p.binary, p.args()...)
	cmd.ExtraFiles = append([]*os.File{vsockFD - 3: devs.vsock(), qmpFD - 3: listener, jailFD - 3: jail}, devs.shares()...)
	for _, n := range p.NICs {
		if !n.NAT {
			cmd.ExtraFiles = append(cmd.ExtraFiles, n.File)
		}
	}
	cmd.Stdout, cmd.Stderr = m.console, m.stderr
	cmd.WaitDelay = time.Second

	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asked {
		err = vmm.ErrNotRunning
	} else {
		err = startBound(cmd, jail != nil, p.NetNS) // who may do the one may do the other
	}
	if err != nil {
		_ = mon.close()
		return nil, fmt.Errorf("start %s: %w", p.binary, err)
	}
	m.cmd, m.monitor, m.watcher, started = cmd, mon, devs.watcher, true
	devs.serve()
	go func() {
		err := cmd.Wait()
		err2 := devs.close()
		_ = mon.close()
		if err2 != nil {
			m.reportFault(err2)
		}
		m.finish(m.explain(err))
	}()
	return devs.last(), nil
}

// reportFault keeps the first fault for Err. It does not end the machine: a
// guest that breaks its own devices has only lost these.
func (m *machine) reportFault(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault == nil {
		m.fault = err
	}
}

// explain turns how QEMU ended into Err's error.
func (m *machine) explain(waitErr error) error {
	m.mu.Lock()
	e := ending{
		name: m.cfg.Name, memory: m.cfg.Memory, asked: m.asked, wait: waitErr, fault: m.fault,
		console: m.console.Bytes(), stderr: m.stderr.Bytes(),
	}
	m.mu.Unlock()
	return e.explain()
}

// running returns the process, or ErrNotRunning.
func (m *machine) running() (*exec.Cmd, *monitor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
	default:
		if m.cmd != nil {
			return m.cmd, m.monitor, nil
		}
	}
	return nil, nil, fmt.Errorf("machine %s: %w", m.cfg.Name, vmm.ErrNotRunning)
}

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if _, _, err := m.running(); err != nil {
		return nil, err
	}
	c, err := m.vsock.Dial(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.cfg.Name, err)
	}
	m.endTurn()
	return c, nil
}

// Listen implements vmm.Machine.
func (m *machine) Listen(port uint32) (net.Listener, error) {
	l, err := m.vsock.Listen(port)
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.cfg.Name, err)
	}
	return &firstCall{l, m}, nil
}

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.command(ctx, "stop", "pause") }

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error { return m.command(ctx, "cont", "resume") }

func (m *machine) command(ctx context.Context, qmp, what string) error {
	_, mon, err := m.running()
	if err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() { result <- mon.run(ctx, qmp) }()
	select {
	case err = <-result:
	case <-m.done:
		err = vmm.ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("machine %s: %s: %w", m.cfg.Name, what, err)
	}
	return nil
}

// Stop implements vmm.Machine.
func (m *machine) Stop(ctx context.Context) error {
	cmd := m.ask()
	if cmd == nil {
		return nil
	}
	// QEMU flushes its disks and exits.
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	ctx, cancel := context.WithTimeout(ctx, termTimeout)
	defer cancel()
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return m.Kill()
	}
}

// Kill implements vmm.Machine.
func (m *machine) Kill() error {
	cmd := m.ask()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("machine %s: kill: %w", m.cfg.Name, err)
	}
	select {
	case <-m.done:
		return nil
	case <-time.After(killTimeout):
		return fmt.Errorf("machine %s: process %d does not die", m.cfg.Name, cmd.Process.Pid)
	}
}

// ask notes that the end is wanted. It returns nil if there is nothing to end.
func (m *machine) ask() *exec.Cmd {
	m.mu.Lock()
	m.asked = true
	cmd, started := m.cmd, m.started
	m.started = true
	m.mu.Unlock()
	if !started {
		m.finish(nil)
	}
	return cmd
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
	if m.cmd == nil {
		return 0
	}
	return m.cmd.Process.Pid
}

// Console implements vmm.Machine.
func (m *machine) Console() []byte { return m.console.Bytes() }
