// Package task serves containerd's task service (containerd.task.v3.Task): it
// gives each container a machine of its own and passes on, checked, what is
// asked of the processes in it.
//
// Create, start and delete are the steps of a container; a process is the
// container's own ("init", with an empty exec identifier) or one that Exec adds.
// State, Wait and Pids are answered from what the shim knows; the guest is asked
// for nothing that the shim can know by itself.
package task

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/shim/trace"
	"github.com/applevm/applevm/vmm"
)

// Options is what a Service needs.
type Options struct {
	// Namespace is containerd's namespace that the shim works for.
	Namespace string
	// Config is loaded at the first Create, so that its errors reach the client.
	Config func() (config.Config, error)
	// Driver makes the driver of machines.
	Driver func(config.Config) (vmm.Driver, error)
	// Publisher takes the events.
	Publisher Publisher
	// Incarnation tells one run of containerd from another (publish.Incarnation); it
	// may be nil.
	Incarnation func() string
	// Shutdown ends the shim; its callbacks clean up.
	Shutdown shutdown.Service
	// TraceFile takes each container's trace when it is deleted; empty is none.
	TraceFile string
	// Marks are put into each container's trace: what happened before the
	// service existed.
	Marks func(*trace.Recorder)
}

// Service is the task service. It is safe for concurrent use.
type Service struct {
	opts   Options
	ctx    context.Context
	events *forwarder

	mu         sync.Mutex
	stopping   bool
	containers map[string]*container
}

var _ taskapi.TTRPCTaskService = (*Service)(nil)

// New returns a Service. ctx carries the logger; its end has no effect, the
// service ends with Options.Shutdown.
func New(ctx context.Context, opts Options) *Service {
	ctx = context.WithoutCancel(ctx)
	s := &Service{
		opts:       opts,
		ctx:        ctx,
		events:     newForwarder(ctx, opts.Namespace, opts.Publisher),
		containers: map[string]*container{},
	}
	opts.Shutdown.RegisterCallback(func(ctx context.Context) error {
		s.stop()
		s.events.close(ctx)
		return nil
	})
	return s
}

// RegisterTTRPC adds the service to a server, for containerd's pkg/shim.
func (s *Service) RegisterTTRPC(srv *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(srv, s)
	return nil
}

// stop ends what still runs: the shim is about to end.
func (s *Service) stop() {
	s.mu.Lock()
	s.stopping = true
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range list {
		wg.Go(func() { c.destroy(s.ctx) })
	}
	wg.Wait()
}

// container finds a container that Create has made.
func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil || !c.isCreated() {
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("container %s is not created", id))
	}
	return c, nil
}

// process finds a process; the container's own if execID is empty.
func (s *Service) process(id, execID string) (*process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	return c.process(execID)
}

// known finds a process as process does, and also the init process of a
// container that Create is still making. A client whose input ends meanwhile
// looks the task up to close its stdin, and gives up for good if it is not
// there: nerdctl run -i does so, and a machine boots longer than a short input
// lasts. nerdctl's logging program waits for a task as soon as it finds it.
func (s *Service) known(id, execID string) (*process, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c != nil && execID == "" {
		return c.init, nil
	}
	return s.process(id, execID)
}

func (s *Service) remove(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.id] == c {
		delete(s.containers, c.id)
	}
}

// Create boots the container's machine and has its guest make the container.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	c, err := s.create(ctx, r)
	if err != nil {
		log.G(s.ctx).WithError(err).WithField("id", r.ID).Error("create failed")
		return nil, createError(err)
	}
	return &taskapi.CreateTaskResponse{Pid: c.pid()}, nil
}

func (s *Service) create(ctx context.Context, r *taskapi.CreateTaskRequest) (*container, error) {
	if r.Checkpoint != "" {
		return nil, errdefs.ErrNotImplemented.WithMessage("Create from a checkpoint is not implemented")
	}
	c := newContainer(s, r)
	s.mu.Lock()
	_, exists := s.containers[r.ID]
	switch {
	case s.stopping:
		s.mu.Unlock()
		return nil, errdefs.ErrUnavailable.WithMessage("the shim is shutting down")
	case exists:
		s.mu.Unlock()
		return nil, errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("container %s already exists", r.ID))
	}
	s.containers[r.ID] = c
	s.mu.Unlock()

	// Delete and Shutdown cancel a Create that is under way.
	ctx, stop := c.creating(ctx)
	defer stop()
	if err := c.create(ctx, r); err != nil {
		c.destroy(s.ctx)
		s.remove(c)
		return nil, err
	}
	return c, nil
}

// Start runs a process.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	p, err := s.process(r.ID, r.ExecID)
	if err == nil {
		err = p.start(ctx)
	}
	if err != nil {
		return nil, toWire(err)
	}
	return &taskapi.StartResponse{Pid: p.c.pid()}, nil
}

// Exec adds a process to a container.
func (s *Service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err == nil {
		err = c.addExec(ctx, r)
	}
	return empty(err)
}

// State tells what the shim knows of a process.
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	p, err := s.known(r.ID, r.ExecID)
	if err != nil {
		return nil, toWire(err)
	}
	st := p.state()
	resp := &taskapi.StateResponse{
		ID:         p.id(),
		Bundle:     p.c.bundle,
		Pid:        p.c.pid(),
		Status:     st.status,
		Stdin:      p.stdio.Stdin,
		Stdout:     p.stdio.Stdout,
		Stderr:     p.stdio.Stderr,
		Terminal:   p.stdio.Terminal,
		ExitStatus: st.exitStatus,
		ExecID:     p.execID,
	}
	if !st.exitedAt.IsZero() {
		resp.ExitedAt = timestamppb.New(st.exitedAt)
	}
	return resp, nil
}

// Wait waits for a process's end.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	p, err := s.known(r.ID, r.ExecID)
	if err != nil {
		return nil, toWire(err)
	}
	select {
	case <-p.c.createDone:
		// A container whose Create has failed never runs, nor exits.
		if !p.hasExited() && !p.c.isCreated() {
			return nil, toWire(errdefs.ErrNotFound.WithMessage(fmt.Sprintf("container %s was not created", r.ID)))
		}
	case <-ctx.Done():
		return nil, toWire(ctx.Err())
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		return nil, toWire(ctx.Err())
	}
	st := p.state()
	return &taskapi.WaitResponse{ExitStatus: st.exitStatus, ExitedAt: timestamppb.New(st.exitedAt)}, nil
}

// Kill sends a signal.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	p, err := s.process(r.ID, r.ExecID)
	if err == nil {
		err = p.kill(ctx, r.Signal, r.All)
	}
	return empty(err)
}

// ResizePty sets the size of a process's terminal.
func (s *Service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	p, err := s.process(r.ID, r.ExecID)
	if err == nil {
		err = p.resize(ctx, r.Width, r.Height)
	}
	return empty(err)
}

// CloseIO closes a process's stdin.
func (s *Service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.known(r.ID, r.ExecID)
	if err == nil && r.Stdin {
		p.closeStdin()
	}
	return empty(err)
}

// Pids returns the VMM's process: identifiers in the guest mean nothing on the
// host, where clients would take them for those of other processes.
func (s *Service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, toWire(err)
	}
	resp := &taskapi.PidsResponse{}
	// Also of a machine that has ended: a containerd that starts again takes a task
	// without processes for one that never was, and removes it, exit status and all
	// (containerd, core/runtime/v2/shim_load.go).
	if pid := c.pid(); pid != 0 {
		resp.Processes = append(resp.Processes, &tasktypes.ProcessInfo{Pid: pid})
	}
	return resp, nil
}

// Pause freezes a container's processes.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err == nil {
		err = c.pause(ctx)
	}
	return empty(err)
}

// Resume thaws what Pause has frozen.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err == nil {
		err = c.resume(ctx)
	}
	return empty(err)
}

// Delete removes a process that has ended; with an empty exec identifier the
// container and its machine.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp, err := s.delete(ctx, r)
	if err != nil {
		return nil, toWire(err)
	}
	return resp, nil
}

func (s *Service) delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	s.mu.Lock()
	c := s.containers[r.ID]
	s.mu.Unlock()
	if c != nil && !c.isCreated() {
		// The client has given Create up: end it, and have it clean up.
		c.cancelCreate(ctx)
	}
	p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.ExecID != "" {
		err = p.c.deleteExec(ctx, p)
	} else {
		err = p.c.delete(ctx)
	}
	if err != nil {
		return nil, err
	}
	st := p.state()
	if r.ExecID == "" {
		s.remove(p.c)
		s.events.send(&events.TaskDelete{
			ContainerID: r.ID,
			Pid:         p.c.pid(),
			ExitStatus:  st.exitStatus,
			ExitedAt:    timestamppb.New(st.exitedAt),
		})
	}
	return &taskapi.DeleteResponse{Pid: p.c.pid(), ExitStatus: st.exitStatus, ExitedAt: timestamppb.New(st.exitedAt)}, nil
}

// Connect tells process identifiers.
func (s *Service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	resp := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, err := s.container(r.ID); err == nil {
		resp.TaskPid = c.pid()
	}
	return resp, nil
}

// Shutdown ends the shim if it has no container left. A container whose Create
// is still under way is one that the client has given up.
func (s *Service) Shutdown(ctx context.Context, _ *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	for _, c := range s.containers {
		if c.isCreated() {
			s.mu.Unlock()
			return &emptypb.Empty{}, nil
		}
	}
	s.stopping = true
	s.mu.Unlock()
	s.opts.Shutdown.Shutdown()
	return &emptypb.Empty{}, nil
}

// Checkpoint is not built.
func (s *Service) Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return empty(errdefs.ErrNotImplemented.WithMessage("Checkpoint is not implemented"))
}

// Update changes a container's limits.
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err == nil {
		err = c.update(ctx, r.Resources)
	}
	return empty(err)
}

// Stats tells what a container uses.
func (s *Service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, toWire(err)
	}
	a, err := c.stats(ctx)
	if err != nil {
		return nil, toWire(err)
	}
	return &taskapi.StatsResponse{Stats: a}, nil
}
