// Package machine runs the virtual machine of a container: it boots one,
// waits for its agent's call, and owns the connections with the guest for as
// long as they last.
//
// The guest is not trusted. Every call has a deadline that holds even if the
// guest stops reading; what it answers is bounded; and when it breaks the
// connection the machine is ended.
package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/shim/stdio"
	"github.com/applevm/applevm/shim/trace"
	"github.com/applevm/applevm/vmm"
)

const (
	// endGrace is how long a machine whose agent has hung up may take to end
	// by itself: a panicking kernel writes to the console before it resets.
	endGrace = time.Second
	// consoleLines is how many of the console's last lines go into an error.
	consoleLines = 12
)

// Machine is a started machine.
type Machine struct {
	name    string
	vm      vmm.Machine
	control net.Listener
	streams *stdio.Hub
	rec     *trace.Recorder
	unsent  atomic.Int32 // requests that wait to be sent though nobody waits for them

	mu     sync.Mutex
	client *ttrpc.Client
	killed bool // by us: its end is no failure

	done chan struct{}
	err  error // valid after done
}

// Start starts a machine. rec takes the times of the boot.
func Start(ctx context.Context, drv vmm.Driver, cfg vmm.Config, rec *trace.Recorder) (*Machine, error) {
	vm, err := drv.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", cfg.Name, err)
	}
	m := &Machine{name: cfg.Name, vm: vm, rec: rec, done: make(chan struct{})}
	// Listening comes first, so that no guest is ever too early.
	if m.control, err = vm.Listen(api.ControlPort); err != nil {
		_ = vm.Kill()
		return nil, fmt.Errorf("machine %s: %w", cfg.Name, err)
	}
	l, err := vm.Listen(api.StreamPort)
	if err != nil {
		m.control.Close()
		_ = vm.Kill()
		return nil, fmt.Errorf("machine %s: %w", cfg.Name, err)
	}
	m.streams = stdio.NewHub(l)
	rec.Mark(trace.VMMStart)
	if err := vm.Start(ctx); err != nil {
		m.control.Close()
		m.streams.Close()
		_ = vm.Kill()
		return nil, fmt.Errorf("start machine %s: %w", cfg.Name, err)
	}
	rec.Mark(trace.VMMStarted)
	go m.watch(context.WithoutCancel(ctx))
	return m, nil
}

// Connect waits at most timeout (see patient) for the agent's call. If it fails the machine
// is gone, and the error carries the console's last lines.
func (m *Machine) Connect(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := patient(ctx, timeout, m.starved, fmt.Errorf("the guest did not report within %v", timeout))
	defer cancel()
	type result struct {
		c   net.Conn
		err error
	}
	accepted := make(chan result, 1)
	go func() {
		c, err := m.control.Accept()
		accepted <- result{c, err}
	}()
	// One call is all that is taken: whoever dials later is not the agent.
	defer m.control.Close()
	var err error
	select {
	case r := <-accepted:
		if r.err == nil {
			m.rec.Mark(trace.AgentConnected)
			return m.serve(ctx, r.c)
		}
		// The listener ends with the machine; wait for what the machine says.
		select {
		case <-m.vm.Done():
			err = m.endError()
		case <-time.After(endGrace):
			err = r.err
		}
	case <-m.vm.Done():
		err = m.endError()
	case <-ctx.Done():
		err = context.Cause(ctx)
		if tail := m.consoleTail(); tail != "" && !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("%w; last lines of its console:\n%s", err, tail)
		}
	}
	_ = m.Kill()
	return fmt.Errorf("boot of machine %s failed: %w", m.name, err)
}

// serve makes the agent's connection the one that calls go over.
func (m *Machine) serve(ctx context.Context, c net.Conn) error {
	lost := make(chan struct{})
	client := ttrpc.NewClient(c, ttrpc.WithUnaryClientInterceptor(m.bounded), ttrpc.WithOnClose(func() { close(lost) }))
	m.mu.Lock()
	m.client = client
	m.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	go func() {
		<-lost
		select {
		case <-m.vm.Done():
			return
		case <-time.After(endGrace):
		}
		log.G(ctx).Warn("the agent has closed its connection: ending its machine")
		_ = m.vm.Kill()
	}()
	return nil
}

// maxUnsent is how many requests may wait to be sent to a guest that does not read.
const maxUnsent = 64

// errUnsent is the error of a request beyond maxUnsent.
var errUnsent = fmt.Errorf("the guest does not read: %d requests wait", maxUnsent)

// bounded lets no call outlast its context. ttrpc alone honours it only while it
// waits for an answer, not while it sends to a guest that does not read: what is
// left behind then waits until the machine ends.
func (m *Machine) bounded(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	if m.unsent.Load() >= maxUnsent {
		return errUnsent
	}
	done := make(chan error, 1)
	answer := &ttrpc.Response{}
	go func() { done <- invoke(ctx, req, answer) }()
	select {
	case err := <-done:
		if err == nil {
			resp.Status, resp.Payload = answer.Status, answer.Payload
		}
		return err
	case <-ctx.Done():
		m.unsent.Add(1)
		go func() {
			<-done //nolint:errcheck // nobody waits for it any more
			m.unsent.Add(-1)
		}()
		return ctx.Err()
	}
}

// watch notes the machine's end.
func (m *Machine) watch(ctx context.Context) {
	<-m.vm.Done()
	m.control.Close()
	m.streams.Close()
	m.mu.Lock()
	client, killed := m.client, m.killed
	m.mu.Unlock()
	m.err = m.endError()
	if client != nil {
		_ = client.Close()
	}
	if !killed {
		log.G(ctx).WithField("console", m.consoleTail()).WithError(m.err).Error("the machine has ended")
	}
	close(m.done)
}

// endError says why the machine ended. The driver's error carries the console's
// last lines; a guest that powered itself off gives none.
func (m *Machine) endError() error {
	if err := m.vm.Err(); err != nil {
		return printable(err)
	}
	m.mu.Lock()
	killed := m.killed
	m.mu.Unlock()
	if killed {
		return errors.New("it was ended by the shim")
	}
	err := errors.New("the guest has switched it off")
	if tail := m.consoleTail(); tail != "" {
		err = fmt.Errorf("%w; last lines of its console:\n%s", err, tail)
	}
	return err
}

// Kill ends the machine at once and returns when it is gone.
func (m *Machine) Kill() error {
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	err := m.vm.Kill()
	m.rec.Mark(trace.MachineGone)
	return err
}

// Done is closed when the machine has ended and Err can be asked.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err tells, after Done, why the machine ended; it is never nil then.
func (m *Machine) Err() error { return m.err }

// PID is the host process in which the guest runs.
func (m *Machine) PID() int { return m.vm.PID() }

// Streams takes the connections of the processes' stdio.
func (m *Machine) Streams() *stdio.Hub { return m.streams }

// ShareWatcher watches the files that the machine shares; nil if its driver cannot.
func (m *Machine) ShareWatcher() vmm.ShareWatcher {
	w, _ := m.vm.(vmm.ShareWatcher)
	return w
}

// Dial connects to a vsock port of the guest.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return m.vm.Dial(ctx, port)
}

// Listen takes the guest's connections to a vsock port of the host.
func (m *Machine) Listen(port uint32) (net.Listener, error) {
	return m.vm.Listen(port)
}

// Task calls the guest's task service; valid after Connect.
func (m *Machine) Task() taskapi.TTRPCTaskService {
	m.mu.Lock()
	defer m.mu.Unlock()
	return taskapi.NewTTRPCTaskClient(m.client)
}

// Guest calls the guest's machine service; valid after Connect.
func (m *Machine) Guest() guestv1.GuestService {
	m.mu.Lock()
	defer m.mu.Unlock()
	return guestv1.NewGuestClient(m.client)
}

// Files calls the guest's service for a container's files; valid after Connect.
func (m *Machine) Files() guestv1.FilesService {
	m.mu.Lock()
	defer m.mu.Unlock()
	return guestv1.NewFilesClient(m.client)
}

// consoleTail returns the console's last lines, printable.
func (m *Machine) consoleTail() string {
	lines := strings.Split(strings.TrimSpace(Printable(string(m.vm.Console()))), "\n")
	if len(lines) > consoleLines {
		lines = lines[len(lines)-consoleLines:]
	}
	return strings.Join(lines, "\n")
}
