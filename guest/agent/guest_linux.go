package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// guestService is applevm.guest.v1.Guest.
type guestService struct{ *Agent }

var _ guestv1.GuestService = (*guestService)(nil)

func (s *guestService) Info(context.Context, *guestv1.InfoRequest) (*guestv1.InfoResponse, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	return &guestv1.InfoResponse{
		Version:      api.Version,
		Kernel:       unix.ByteSliceToString(u.Release[:]),
		AgentStartNs: int64(s.opts.Started),
		AgentReadyNs: int64(s.opts.Ready),
	}, nil
}

func (s *guestService) ShiftClock(_ context.Context, req *guestv1.ShiftClockRequest) (*guestv1.ShiftClockResponse, error) {
	if d := time.Duration(req.GetShiftNs()); d != 0 {
		if err := s.opts.ShiftClock(d, req.GetSlew()); err != nil {
			return nil, err
		}
	}
	return &guestv1.ShiftClockResponse{UnixNanos: time.Now().UnixNano()}, nil
}

func (s *guestService) Shutdown(ctx context.Context, req *guestv1.ShutdownRequest) (*guestv1.ShutdownResponse, error) {
	if req.GetGraceNs() < 0 {
		return nil, invalid("a grace of %d ns is negative", req.GetGraceNs())
	}
	return &guestv1.ShutdownResponse{}, s.shutdown(ctx, time.Duration(req.GetGraceNs()), req.GetLeaveClean())
}

func (s *guestService) WaitEvents(ctx context.Context, req *guestv1.WaitEventsRequest) (*guestv1.WaitEventsResponse, error) {
	return s.waitEvents(ctx, req.GetAfter(), !req.GetNoWait())
}

func (s *guestService) WaitListeners(ctx context.Context, req *guestv1.WaitListenersRequest) (*guestv1.WaitListenersResponse, error) {
	return waitListeners(ctx, "/proc/net", req.GetKnown())
}

func (s *guestService) SetFile(_ context.Context, req *guestv1.SetFileRequest) (*guestv1.SetFileResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &guestv1.SetFileResponse{}, c.setFile(req.GetPath(), req.GetContent())
}

func (s *guestService) WaitWatches(ctx context.Context, req *guestv1.WaitWatchesRequest) (*guestv1.WaitWatchesResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return c.waitWatches(ctx, req.GetKnown(), req.GetPaths())
}

func (s *guestService) RaiseFileEvents(_ context.Context, req *guestv1.RaiseFileEventsRequest) (*guestv1.RaiseFileEventsResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &guestv1.RaiseFileEventsResponse{}, c.raiseFileEvents(req)
}

// Shutdown ends all containers: SIGTERM, SIGKILL after grace (at once if that is
// 0). Then it unmounts all disks and writes everything back. No container can be
// made any more, not even if it fails.
func (a *Agent) Shutdown(ctx context.Context, grace time.Duration) error {
	return a.shutdown(ctx, grace, false)
}

func (a *Agent) shutdown(ctx context.Context, grace time.Duration, leaveClean bool) error {
	a.mu.Lock()
	a.stopping = true
	all := make([]*container, 0, len(a.containers))
	for _, c := range a.containers {
		if c.init != nil {
			all = append(all, c)
		}
	}
	a.mu.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			if err := c.shutdown(ctx, grace, leaveClean); err != nil {
				errs[i] = fmt.Errorf("container %q: %w", c.id, err)
			}
		})
	}
	wg.Wait()
	unix.Sync() // also what is no disk of theirs
	return errors.Join(errs...)
}

// shutdown ends the container's processes and unmounts its disks, with leaveClean
// only if that changes anything on them.
func (c *container) shutdown(ctx context.Context, grace time.Duration, leaveClean bool) error {
	if !c.init.hasExited() {
		if grace > 0 && c.isPaused() {
			_ = c.resume() // else it takes no notice of SIGTERM
		}
		if grace > 0 && c.init.kill(unix.SIGTERM) == nil {
			select {
			case <-c.init.exited:
			case <-time.After(grace):
			case <-ctx.Done():
			}
		}
		if err := c.killCgroup(); err != nil {
			return err
		}
		select {
		case <-c.init.exited:
		case <-time.After(killTimeout):
			return errors.New("its processes do not die")
		}
	}
	if leaveClean && c.isClean() {
		return nil
	}
	return c.delete(c.init)
}

// isClean reports whether an ended container's disks are as after an unmount.
func (c *container) isClean() bool {
	return !slices.ContainsFunc(c.freezers, func(f *freezer) bool { return !f.isFrozen() })
}
