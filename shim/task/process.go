package task

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/applevm/applevm/shim/plan"
	"github.com/applevm/applevm/shim/stdio"
	"github.com/applevm/applevm/shim/trace"
)

const sigkill = uint32(syscall.SIGKILL)

// process is a container's own process or one that Exec has added.
type process struct {
	c      *container
	execID string // empty for the container's own
	stdio  stdio.Config
	spec   []byte // of an exec

	// lifecycle is held while the process is started, event included, and while
	// its exit is published: an exit is never told before its start.
	lifecycle sync.Mutex
	exited    chan struct{}
	// settling is set while the process has ended and its output is being read;
	// unread is done when that shall not be waited for any more, by giveUp.
	settling atomic.Bool
	unread   context.Context
	giveUp   context.CancelFunc

	mu          sync.Mutex
	st          state
	io          *stdio.IO
	inGuest     bool // the guest knows it
	stdinClosed bool
}

// state is what clients are told of a process.
type state struct {
	status     tasktypes.Status
	exitStatus uint32
	exitedAt   time.Time
}

func newProcess(c *container, execID string, cfg stdio.Config) *process {
	p := &process{c: c, execID: execID, stdio: cfg, exited: make(chan struct{}), st: state{status: tasktypes.Status_CREATED}}
	p.unread, p.giveUp = context.WithCancel(context.Background())
	return p
}

func newExec(c *container, r *taskapi.ExecProcessRequest) (*process, error) {
	spec, warnings, err := plan.Process(r.Spec.GetValue())
	if err != nil {
		return nil, err
	}
	p := newProcess(c, r.ExecID, stdio.Config{
		Namespace: c.s.opts.Namespace, ID: r.ExecID,
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
		// No client attaches to an exec again: what was piped into it by one that has
		// gone must not wait for ever.
		OneClient:   !r.Terminal,
		Incarnation: c.s.opts.Incarnation,
	})
	p.spec = spec
	for _, w := range warnings {
		log.G(c.ctx).WithField("exec", r.ExecID).Warn(w)
	}
	return p, nil
}

// id is the process's identifier in events: the container's for its own.
func (p *process) id() string {
	if p.execID == "" {
		return p.c.id
	}
	return p.execID
}

func (p *process) state() state {
	p.c.mu.Lock()
	paused := p.c.paused
	p.c.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.st
	if paused && st.status == tasktypes.Status_RUNNING {
		st.status = tasktypes.Status_PAUSED
	}
	return st
}

func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

func (p *process) setIO(io *stdio.IO) {
	p.mu.Lock()
	p.io = io
	closed := p.stdinClosed
	p.mu.Unlock()
	if closed {
		io.CloseStdin()
	}
}

func (p *process) setInGuest(v bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inGuest = v
}

func (p *process) isInGuest() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inGuest
}

// start runs the process.
func (p *process) start(ctx context.Context) error {
	if err := p.startLocked(ctx); err != nil || p.execID != "" {
		return err
	}
	// Not under the lock: a hook that takes its time does not hold up the exit.
	if err := p.c.poststart(); err != nil {
		return err
	}
	p.c.rec.Mark(trace.StartEnd)
	return nil
}

func (p *process) startLocked(ctx context.Context) error {
	p.lifecycle.Lock()
	defer p.lifecycle.Unlock()
	switch p.state().status {
	case tasktypes.Status_CREATED:
	case tasktypes.Status_STOPPED:
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("process %s has ended already", p.id()))
	default:
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("process %s runs already", p.id()))
	}
	if p.execID != "" {
		return p.startExec(ctx)
	}
	p.c.rec.Mark(trace.StartBegin)
	if err := p.startInit(ctx); err != nil {
		return runtimeError("OCI runtime start failed", err)
	}
	return nil
}

// startInit starts the container's own process. One that starts later than its
// client waited runs nevertheless, and the client is told so by its event.
func (p *process) startInit(ctx context.Context) error {
	p.c.clockSet(ctx)
	started := &apievents.TaskStart{ContainerID: p.c.id, Pid: p.c.pid()}
	return p.c.callThrough(ctx, startTimeout, p.startInGuest, func(err error, late bool) {
		switch {
		case err != nil:
		case !late:
			p.running(started)
		default:
			log.G(p.c.ctx).Warn("the guest has started the container later than its client waited")
			p.lifecycle.Lock()
			created := p.state().status == tasktypes.Status_CREATED
			if created {
				p.running(started)
			}
			p.lifecycle.Unlock()
			if created {
				if err := p.c.poststart(); err != nil {
					log.G(p.c.ctx).WithError(err).Error("the container is stopped")
				}
			}
		}
	})
}

func (p *process) startExec(ctx context.Context) error {
	c := p.c
	c.mu.Lock()
	over := c.initExited
	c.mu.Unlock()
	if over {
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("container %s does not run", c.id))
	}
	if err := c.starting.in(ctx, func() error { return p.execInGuest(ctx) }); err != nil {
		err = runtimeError("OCI runtime exec failed: exec failed", err)
		p.fail(exitStatusOf(err))
		return err
	}
	p.running(&apievents.TaskExecStarted{ContainerID: c.id, ExecID: p.execID, Pid: c.pid()})
	go p.watch()
	return nil
}

// execInGuest opens the process's stdio and has the guest start it. What fails leaves
// nothing in the guest, neither at once nor later.
func (p *process) execInGuest(ctx context.Context) error {
	octx, cancel := context.WithTimeout(log.WithLogger(ctx, log.G(p.c.ctx)), stdioTimeout)
	defer cancel()
	io, err := stdio.Open(octx, p.stdio)
	if err != nil {
		return err
	}
	io.Copy(p.c.machine.Streams())
	p.setIO(io)
	req := &taskapi.ExecProcessRequest{
		ID: p.c.id, ExecID: p.execID, Terminal: p.stdio.Terminal,
		Spec: &anypb.Any{TypeUrl: processTypeURL, Value: p.spec},
	}
	req.Stdin, req.Stdout, req.Stderr = io.Names()
	p.setInGuest(true)
	asked := false // the guest
	return p.c.callThrough(ctx, startTimeout, func(ctx context.Context, t taskapi.TTRPCTaskService) error {
		asked = true
		if _, err := t.Exec(ctx, req); err != nil {
			return err
		}
		return p.startInGuest(ctx, t)
	}, func(err error, late bool) {
		switch {
		case late:
			p.discard()
		case err != nil && asked:
			_ = p.c.call(ctx, callTimeout, p.deleteInGuest) // it may not know the process
		}
	})
}

// discard removes a process from the guest that was started too late: its client
// was told that it failed.
func (p *process) discard() {
	err := p.c.call(p.c.ctx, 0, func(ctx context.Context, t taskapi.TTRPCTaskService) error {
		_, err := t.Kill(ctx, &taskapi.KillRequest{ID: p.c.id, ExecID: p.execID, Signal: sigkill})
		if err == nil {
			_, err = t.Wait(ctx, &taskapi.WaitRequest{ID: p.c.id, ExecID: p.execID})
		}
		return errors.Join(err, p.deleteInGuest(ctx, t))
	})
	log.G(p.c.ctx).WithError(err).WithField("exec", p.execID).Debug("an exec that came too late is removed from the guest")
}

func (p *process) deleteInGuest(ctx context.Context, t taskapi.TTRPCTaskService) error {
	_, err := t.Delete(ctx, &taskapi.DeleteRequest{ID: p.c.id, ExecID: p.execID})
	return err
}

// processTypeURL is the name under which typeurl knows an OCI process, which is
// JSON (containerd, core/runtime/v2: typeurl.Register with a version prefix).
const processTypeURL = "types.containerd.io/opencontainers/runtime-spec/1/Process"

func (p *process) startInGuest(ctx context.Context, t taskapi.TTRPCTaskService) error {
	_, err := t.Start(ctx, &taskapi.StartRequest{ID: p.c.id, ExecID: p.execID})
	return err
}

// running notes that the process runs; event is queued before anybody can know.
func (p *process) running(event events.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.st.status = tasktypes.Status_RUNNING
	p.c.s.events.send(event)
}

// fail ends an exec that could not be started. No exit is published, for no
// start was.
func (p *process) fail(status uint32) {
	p.setInGuest(false)
	p.closeIO()
	p.setExited(status, time.Now(), nil)
}

// setExited notes the process's end. event, if not nil, is queued before anybody
// can know of the end and cause another event.
func (p *process) setExited(status uint32, at time.Time, event *apievents.TaskExit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.st = state{status: tasktypes.Status_STOPPED, exitStatus: status, exitedAt: at}
	if event != nil {
		p.c.s.events.send(event)
	}
	p.giveUp()
	close(p.exited)
}

// watch waits for the process's end, or its machine's, and publishes it.
func (p *process) watch() {
	c := p.c
	var status uint32
	err := c.call(c.ctx, 0, func(ctx context.Context, t taskapi.TTRPCTaskService) error {
		resp, err := t.Wait(ctx, &taskapi.WaitRequest{ID: c.id, ExecID: p.execID})
		// A status has 8 bits; whatever else the guest says is not one.
		status = min(resp.GetExitStatus(), 255)
		return err
	})
	if err != nil {
		if !c.machineEnded() {
			log.G(c.ctx).WithError(err).Error("the guest does not say when a process ends: ending its machine")
			_ = c.machine.Kill()
		}
		status = killed
	} else if status != 0 {
		c.lookAtMemory()
	}
	at := time.Now()
	if p.execID == "" {
		c.rec.Mark(trace.Exit)
		c.awaitExecs()
	}
	// Clients stop to read when they hear of the exit.
	p.mu.Lock()
	io := p.io
	p.mu.Unlock()
	if io != nil {
		p.settling.Store(true)
		io.Settle(p.unread, p.execID == "")
	}
	p.lifecycle.Lock()
	defer p.lifecycle.Unlock()
	p.setExited(status, at, &apievents.TaskExit{
		ContainerID: c.id,
		ID:          p.id(),
		Pid:         c.pid(),
		ExitStatus:  status,
		ExitedAt:    timestamppb.New(at),
	})
}

// awaitExecs waits for the exits of the execs, which end with the container's
// own process: its exit is the last that is published.
func (c *container) awaitExecs() {
	c.mu.Lock()
	c.initExited = true
	var list []*process
	for _, p := range c.execs {
		if p.isInGuest() {
			list = append(list, p)
		}
	}
	c.mu.Unlock()
	timeout := time.After(execsTimeout)
	for _, p := range list {
		select {
		case <-p.exited:
			// Its exit is published by who holds the lock.
			p.lifecycle.Lock()
			p.lifecycle.Unlock() //nolint:staticcheck // waits, nothing else
		case <-timeout:
			// Perhaps nobody reads its output.
			for _, p := range list {
				p.giveUp()
			}
			select {
			case <-p.exited:
			case <-time.After(time.Second):
				log.G(c.ctx).WithField("exec", p.execID).Warn("a process outlives its container")
				return
			}
		}
	}
}

// kill sends a signal. SIGKILL to the container's own process always works: if
// the guest does not obey, its machine is ended.
func (p *process) kill(ctx context.Context, signal uint32, all bool) error {
	switch st := p.state().status; {
	case st == tasktypes.Status_STOPPED:
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("process %s has already finished", p.id()))
	case st == tasktypes.Status_CREATED && p.execID != "":
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("process %s is not started", p.id()))
	}
	if signal == sigkill && p.settling.Load() {
		p.giveUp() // it has ended but for its output
	}
	err := p.c.call(ctx, killTimeout, func(ctx context.Context, t taskapi.TTRPCTaskService) error {
		_, err := t.Kill(ctx, &taskapi.KillRequest{ID: p.c.id, ExecID: p.execID, Signal: signal, All: all})
		return err
	})
	if signal != sigkill || p.execID != "" {
		return err
	}
	switch {
	case err == nil:
		go p.c.ensureEnd(p)
		return nil
	case errdefs.IsNotFound(err):
		return err
	}
	log.G(p.c.ctx).WithError(err).Warn("the guest does not kill its container: ending its machine")
	return p.c.machine.Kill()
}

// ensureEnd ends the machine if a killed process goes on in it.
func (c *container) ensureEnd(p *process) {
	select {
	case <-p.exited:
	case <-c.machine.Done():
	case <-time.After(killedTimeout):
		log.G(c.ctx).Warn("the container's process outlives SIGKILL: ending its machine")
		_ = c.machine.Kill()
	}
}

func (p *process) resize(ctx context.Context, width, height uint32) error {
	if p.hasExited() {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("process %s has already finished", p.id()))
	}
	if !p.isInGuest() {
		return nil // clients set the size again when it runs
	}
	return p.c.call(ctx, callTimeout, func(ctx context.Context, t taskapi.TTRPCTaskService) error {
		_, err := t.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: p.c.id, ExecID: p.execID, Width: width, Height: height})
		return err
	})
}

func (p *process) closeStdin() {
	p.mu.Lock()
	p.stdinClosed = true
	io := p.io
	p.mu.Unlock()
	if io != nil {
		io.CloseStdin()
	}
}

// deletable returns an error for a process that runs.
func (p *process) deletable() error {
	switch p.state().status {
	case tasktypes.Status_CREATED, tasktypes.Status_STOPPED:
		return nil
	}
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("process %s still runs: kill it first", p.id()))
}

// drain waits until the process's output has been delivered, or nobody reads it.
func (p *process) drain(ctx context.Context) {
	p.mu.Lock()
	io := p.io
	p.mu.Unlock()
	if io == nil || !p.hasExited() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, outputTimeout)
	defer cancel()
	if err := io.Wait(ctx); err != nil {
		log.G(p.c.ctx).WithField("process", p.id()).Warn("a process's output was not all read: the rest is dropped")
	}
}

func (p *process) closeIO() {
	p.mu.Lock()
	io := p.io
	p.mu.Unlock()
	if io != nil {
		io.Close()
	}
}
