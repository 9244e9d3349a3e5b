package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/network/lan"
	"github.com/applevm/applevm/network/tapns"
	"github.com/applevm/applevm/network/usernet"
	"github.com/applevm/applevm/shim/clock"
	"github.com/applevm/applevm/shim/machine"
	"github.com/applevm/applevm/shim/plan"
	"github.com/applevm/applevm/shim/record"
	"github.com/applevm/applevm/shim/sockets"
	"github.com/applevm/applevm/shim/stdio"
	"github.com/applevm/applevm/shim/trace"
)

// Deadlines of calls into the guest, and of waits for it.
const (
	createTimeout = 60 * time.Second // it may have to replay a disk's journal
	fillTimeout   = 15 * time.Minute // it copies what an image has for a volume
	startTimeout  = 30 * time.Second
	callTimeout   = 5 * time.Second
	fileTimeout   = 20 * time.Second // its disk may be slow
	pauseTimeout  = 30 * time.Second // what the container has written goes to the disk first
	killTimeout   = 3 * time.Second
	// deleteTimeout bounds what the guest does at the end; containerd gives the cleanup
	// of a failed start 5 seconds in all (io.containerd.timeout.shim.cleanup).
	deleteTimeout = 4 * time.Second
	// killedTimeout is how long a process may go on after SIGKILL until its
	// machine is ended.
	killedTimeout = 30 * time.Second // what it has written goes to the disk first
	// outputTimeout bounds the wait for output that nobody reads, as runc's
	// shim does.
	outputTimeout = 10 * time.Second
	// stdioTimeout bounds the opening of stdio, logging programs included.
	stdioTimeout = 35 * time.Second
	// execsTimeout is how long the container's exit waits for those of its
	// execs, which must be published first.
	execsTimeout = 5 * time.Second
)

// killed is the exit status of a process that went down with its machine: 128 +
// SIGKILL, as for one that was killed.
const killed = 137

// container is a container and its machine.
type container struct {
	s      *Service
	ctx    context.Context // carries the logger, never ends
	id     string
	bundle string
	rec    *trace.Recorder

	cancel     context.CancelFunc // of Create
	createDone chan struct{}      // closed when Create is over

	deleteMu    sync.Mutex // one Delete at a time
	destroyOnce sync.Once

	mu          sync.Mutex
	created     bool
	initExited  bool
	paused      bool
	machine     *machine.Machine
	lan         *lan.Port          // nil if it shares no network; closed by network, if there is one
	network     *usernet.Network   // nil if it has none
	netns       *tapns.Namespace   // nil if no client connects it
	shared      *sockets.Shared    // sockets of the host; nil if it mounts none
	published   *sockets.Published // its own on the host; nil if there are none
	portsGone   sync.WaitGroup     // the ports that it shares with the host
	disk        record.Record
	size        plan.Size
	limits      plan.Limits // in force
	outOfMemory uint64      // how often, as far as it is published
	hooks       specs.Hooks
	annotations map[string]string
	init        *process
	execs       map[string]*process

	clock *clock.Keeper // of the machine's clock; nil until the guest has made the container

	starting   turns        // execs that are being started
	pausing    turns        // one pause or resume at a time
	updating   turns        // one update at a time
	unanswered atomic.Int32 // requests without an answer (callThrough)

	// hooksMu is held while poststart hooks run, and for good before poststop's do;
	// endPoststart ends the former for the latter.
	hooksMu      sync.Mutex
	over         context.Context
	endPoststart context.CancelFunc
}

// maxStarting is how many execs start at a time. A machine starts as many in a
// second, however many wait: without turns the last of a crowd would be given up
// for being late.
const maxStarting = 8

func newContainer(s *Service, r *taskapi.CreateTaskRequest) *container {
	c := &container{
		s:          s,
		id:         r.ID,
		bundle:     r.Bundle,
		rec:        trace.New(s.opts.Namespace, r.ID),
		createDone: make(chan struct{}),
		execs:      map[string]*process{},
		starting:   make(turns, maxStarting),
		pausing:    make(turns, 1),
		updating:   make(turns, 1),
	}
	c.ctx = log.WithLogger(s.ctx, log.G(s.ctx).WithField("id", r.ID))
	c.over, c.endPoststart = context.WithCancel(c.ctx)
	c.init = newProcess(c, "", stdio.Config{
		Namespace: s.opts.Namespace, ID: r.ID,
		Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
		Incarnation: s.opts.Incarnation,
	})
	if s.opts.Marks != nil {
		s.opts.Marks(c.rec)
	}
	return c
}

// creating returns the context of Create, which cancelCreate ends too. stop must
// be called when Create is over.
func (c *container) creating(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(log.WithLogger(ctx, log.G(c.ctx)))
	c.mu.Lock()
	c.cancel = cancel
	c.mu.Unlock()
	return ctx, func() {
		cancel()
		close(c.createDone)
	}
}

// cancelCreate ends a Create that is under way and waits until it has cleaned up.
func (c *container) cancelCreate(ctx context.Context) {
	c.mu.Lock()
	cancel := c.cancel
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	select {
	case <-c.createDone:
	case <-ctx.Done():
	}
}

func (c *container) isCreated() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.created
}

// pid is the task's process identifier: the VMM's.
func (c *container) pid() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return uint32(c.disk.PID)
}

func (c *container) machineEnded() bool {
	select {
	case <-c.machine.Done():
		return true
	default:
		return false
	}
}

func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.execs[execID]
	if !ok {
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("process %s of container %s does not exist", execID, c.id))
	}
	return p, nil
}

// call calls the guest. Errors name the container.
func (c *container) call(ctx context.Context, timeout time.Duration, f func(context.Context, taskapi.TTRPCTaskService) error) error {
	err := c.machine.Call(ctx, timeout, func(ctx context.Context) error { return f(ctx, c.machine.Task()) })
	if errdefs.IsUnavailable(err) {
		return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("container %s: %v", c.id, err))
	}
	return err
}

// addExec notes a process that a later Start will run.
func (c *container) addExec(_ context.Context, r *taskapi.ExecProcessRequest) error {
	p, err := newExec(c, r)
	if err != nil {
		return err
	}
	c.mu.Lock()
	_, exists := c.execs[r.ExecID]
	if !exists && r.ExecID != "" {
		c.execs[r.ExecID] = p
	}
	c.mu.Unlock()
	switch {
	case r.ExecID == "":
		return errdefs.ErrInvalidArgument.WithMessage("the process has no identifier")
	case exists:
		return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("process %s of container %s already exists", r.ExecID, c.id))
	}
	c.s.events.send(&apievents.TaskExecAdded{ContainerID: c.id, ExecID: r.ExecID})
	return nil
}

// deleteExec removes a process that Exec has added.
func (c *container) deleteExec(ctx context.Context, p *process) error {
	if err := p.deletable(); err != nil {
		return err
	}
	p.drain(ctx)
	if p.isInGuest() && !c.machineEnded() {
		err := c.call(ctx, callTimeout, p.deleteInGuest)
		if err != nil && !errdefs.IsNotFound(err) {
			log.G(c.ctx).WithError(err).WithField("exec", p.execID).Warn("the guest did not delete a process")
		}
	}
	p.closeIO()
	c.mu.Lock()
	delete(c.execs, p.execID)
	c.mu.Unlock()
	return nil
}

// delete removes a container that does not run (any more), and its machine.
func (c *container) delete(ctx context.Context) error {
	c.deleteMu.Lock()
	defer c.deleteMu.Unlock()
	if c.machine == nil || !c.isCreated() {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("container %s is not created", c.id))
	}
	if err := c.init.deletable(); err != nil {
		return err
	}
	c.rec.Mark(trace.DeleteBegin)
	c.init.drain(ctx)
	if !c.machineEnded() {
		// One that was never started is still there, waiting; it is killed.
		err := c.machine.Call(ctx, deleteTimeout, func(ctx context.Context) error {
			_, err := c.machine.Guest().Shutdown(ctx, &guestv1.ShutdownRequest{LeaveClean: true})
			return err
		})
		if err != nil {
			log.G(c.ctx).WithError(err).Warn("the guest did not finish with its disks: ending its machine all the same")
		}
		c.rec.Mark(trace.GuestDeleted)
	}
	c.destroy(c.ctx)
	// One that was never started ends here.
	select {
	case <-c.init.exited:
	case <-time.After(callTimeout):
	}
	c.mu.Lock()
	c.created = false
	c.mu.Unlock()
	return nil
}

// destroy ends the machine and removes all that the container holds on the host.
func (c *container) destroy(ctx context.Context) {
	c.destroyOnce.Do(func() {
		c.mu.Lock()
		m, shared, network, netns, disk, cancel := c.machine, c.lan, c.network, c.netns, c.disk, c.cancel
		hosts, published := c.shared, c.published
		procs := []*process{c.init}
		for _, p := range c.execs {
			procs = append(procs, p)
		}
		c.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		if m != nil {
			if err := m.Kill(); err != nil {
				log.G(ctx).WithError(err).Error("the machine was not ended in order")
			}
		}
		if published != nil {
			published.Close()
		}
		if hosts != nil {
			hosts.Close()
		}
		c.portsGone.Wait() // they end with the machine
		if netns != nil {
			netns.Close()
		}
		if network != nil {
			if err := network.Close(); err != nil {
				log.G(ctx).WithError(err).Error("the network was not ended in order")
			}
		}
		if shared != nil {
			if err := shared.Close(); err != nil { // the network has, if it was started
				log.G(ctx).WithError(err).Error("the shared network was not left in order")
			}
		}
		var wg sync.WaitGroup
		for _, p := range procs {
			wg.Go(p.closeIO)
		}
		wg.Wait()
		c.poststop(disk.Hooks)
		if disk.MachineDir != "" {
			if err := os.RemoveAll(disk.MachineDir); err != nil {
				log.G(ctx).WithError(err).Error("the machine's directory was not removed")
			}
		}
		c.rec.Mark(trace.DeleteEnd)
		c.finishTrace()
	})
}

// machineContext returns a context that ends with the machine.
func (c *container) machineContext() context.Context {
	ctx, cancel := context.WithCancel(c.ctx)
	go func() {
		<-c.machine.Done()
		cancel()
	}()
	return ctx
}

// save changes the container's record on disk.
func (c *container) save(change func(*record.Record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.disk)
	if err := record.Save(c.bundle, c.disk); err != nil {
		return fmt.Errorf("save the shim's record: %w", err)
	}
	return nil
}

func (c *container) finishTrace() {
	if err := c.rec.Write(c.s.opts.TraceFile); err != nil {
		log.G(c.ctx).WithError(err).Warn("trace not written")
	}
	log.G(c.ctx).WithFields(log.Fields{
		"vmm":    c.rec.Between(trace.VMMStart, trace.VMMStarted),
		"boot":   c.rec.Between(trace.VMMStarted, trace.AgentConnected),
		"create": c.rec.Between(trace.CreateBegin, trace.CreateEnd),
		"start":  c.rec.Between(trace.StartBegin, trace.StartEnd),
		"delete": c.rec.Between(trace.DeleteBegin, trace.DeleteEnd),
	}).Debug("times of the container's life")
}

func readSpec(bundle string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("the container's spec: %w", err)
	}
	return b, nil
}

// errCanceled is what a Create ends with that the client has given up.
var errCanceled = errors.New("the container was deleted while it was being created")

const goarch = runtime.GOARCH
