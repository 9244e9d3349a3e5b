package agent

import (
	"context"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/applevm/applevm/guest/agent/taskpb"
)

// taskService is containerd.task.v3.Task for all the machine's containers. Its
// pids are the guest's and mean nothing to the host.
type taskService struct{ *Agent }

// register has srv serve containerd.task.v3.Task, whose messages package taskpb
// has under names of its own; on the wire there are no names.
func (s *taskService) register(srv *ttrpc.Server) {
	srv.Register("containerd.task.v3.Task", map[string]ttrpc.Method{
		"Checkpoint": method(s.Checkpoint),
		"CloseIO":    method(s.CloseIO),
		"Connect":    method(s.Connect),
		"Create":     method(s.Create),
		"Delete":     method(s.Delete),
		"Exec":       method(s.Exec),
		"Kill":       method(s.Kill),
		"Pause":      method(s.Pause),
		"Pids":       method(s.Pids),
		"ResizePty":  method(s.ResizePty),
		"Resume":     method(s.Resume),
		"Shutdown":   method(s.Shutdown),
		"Start":      method(s.Start),
		"State":      method(s.State),
		"Stats":      method(s.Stats),
		"Update":     method(s.Update),
		"Wait":       method(s.Wait),
	})
}

// method makes a handler of a function on decoded messages.
func method[Req, Resp any](f func(context.Context, *Req) (*Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		req := new(Req)
		if err := unmarshal(req); err != nil {
			return nil, err
		}
		return f(ctx, req)
	}
}

func (s *taskService) Create(ctx context.Context, req *taskpb.CreateTaskRequest) (*taskpb.CreateTaskResponse, error) {
	c, err := s.create(ctx, req)
	if err != nil {
		return nil, err
	}
	return &taskpb.CreateTaskResponse{Pid: uint32(c.init.pid)}, nil
}

func (s *taskService) Start(ctx context.Context, req *taskpb.StartRequest) (*taskpb.StartResponse, error) {
	p, err := s.process(req.GetId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	if err := p.container.start(ctx, p); err != nil {
		return nil, err
	}
	return &taskpb.StartResponse{Pid: uint32(p.pid)}, nil
}

func (s *taskService) State(_ context.Context, req *taskpb.StateRequest) (*taskpb.StateResponse, error) {
	p, err := s.process(req.GetId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	status := p.container.status()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.id != "" || p.status == taskpb.Status_STOPPED {
		status = p.status
	}
	r := &taskpb.StateResponse{
		Id: req.GetId(), ExecId: p.id, Pid: uint32(p.pid), Status: status,
		Stdin: p.names.stdin, Stdout: p.names.stdout, Stderr: p.names.stderr, Terminal: p.names.terminal,
	}
	if p.status == taskpb.Status_STOPPED {
		r.ExitStatus, r.ExitedAt = p.code, timestamppb.New(p.exitedAt)
	}
	return r, nil
}

func (s *taskService) Wait(ctx context.Context, req *taskpb.WaitRequest) (*taskpb.WaitResponse, error) {
	p, err := s.process(req.GetId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	code, at, err := p.wait(ctx)
	if err != nil {
		return nil, err
	}
	return &taskpb.WaitResponse{ExitStatus: code, ExitedAt: timestamppb.New(at)}, nil
}

func (s *taskService) Kill(_ context.Context, req *taskpb.KillRequest) (*emptypb.Empty, error) {
	p, err := s.process(req.GetId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	const maxSignal = 64 // _NSIG
	if req.GetSignal() == 0 || req.GetSignal() > maxSignal {
		return nil, invalid("%d is no signal", req.GetSignal())
	}
	sig := unix.Signal(req.GetSignal())
	if p.id == "" {
		err = p.container.kill(sig, req.GetAll())
	} else {
		err = p.kill(sig)
	}
	return &emptypb.Empty{}, err
}

func (s *taskService) Exec(_ context.Context, req *taskpb.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.container(req.GetId())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.addExec(req)
}

func (s *taskService) Delete(_ context.Context, req *taskpb.DeleteRequest) (*taskpb.DeleteResponse, error) {
	p, err := s.process(req.GetId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	if err := p.container.delete(p); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r := &taskpb.DeleteResponse{Pid: uint32(p.pid), ExitStatus: p.code}
	if !p.exitedAt.IsZero() {
		r.ExitedAt = timestamppb.New(p.exitedAt)
	}
	return r, nil
}

func (s *taskService) Pids(_ context.Context, req *taskpb.PidsRequest) (*taskpb.PidsResponse, error) {
	c, err := s.container(req.GetId())
	if err != nil {
		return nil, err
	}
	lc, err := c.running()
	if err != nil {
		return nil, err
	}
	pids, err := lc.Processes()
	if err != nil {
		return nil, err
	}
	r := &taskpb.PidsResponse{}
	for _, pid := range pids {
		r.Processes = append(r.Processes, &taskpb.ProcessInfo{Pid: uint32(pid)})
	}
	return r, nil
}

func (s *taskService) CloseIO(_ context.Context, req *taskpb.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.process(req.GetId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	if req.GetStdin() {
		p.closeIO()
	}
	return &emptypb.Empty{}, nil
}

func (s *taskService) ResizePty(_ context.Context, req *taskpb.ResizePtyRequest) (*emptypb.Empty, error) {
	p, err := s.process(req.GetId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, p.resize(req.GetWidth(), req.GetHeight())
}

func (s *taskService) Connect(_ context.Context, req *taskpb.ConnectRequest) (*taskpb.ConnectResponse, error) {
	c, err := s.container(req.GetId())
	if err != nil {
		return nil, err
	}
	return &taskpb.ConnectResponse{ShimPid: 1, TaskPid: uint32(c.init.pid)}, nil
}

func (s *taskService) Pause(_ context.Context, req *taskpb.PauseRequest) (*emptypb.Empty, error) {
	c, err := s.container(req.GetId())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.pause()
}

func (s *taskService) Resume(_ context.Context, req *taskpb.ResumeRequest) (*emptypb.Empty, error) {
	c, err := s.container(req.GetId())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.resume()
}

func (s *taskService) Checkpoint(context.Context, *taskpb.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("Checkpoint")
}

func (s *taskService) Update(_ context.Context, req *taskpb.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.container(req.GetId())
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.update(req.GetResources())
}

func (s *taskService) Stats(_ context.Context, req *taskpb.StatsRequest) (*taskpb.StatsResponse, error) {
	c, err := s.container(req.GetId())
	if err != nil {
		return nil, err
	}
	stats, err := c.stats()
	if err != nil {
		return nil, err
	}
	return &taskpb.StatsResponse{Stats: stats}, nil
}

// Shutdown is a shim's: the machine is shut down by Guest.Shutdown.
func (s *taskService) Shutdown(context.Context, *taskpb.ShutdownRequest) (*emptypb.Empty, error) {
	return nil, notImplemented("Shutdown of the task service")
}
