package agent

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/agent/rootfiles"
	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// filesService is applevm.guest.v1.Files.
type filesService struct {
	*Agent
	turns chan struct{} // taken by each request while it is served
}

var _ guestv1.FilesService = (*filesService)(nil)

func newFilesService(a *Agent) *filesService {
	return &filesService{a, make(chan struct{}, api.MaxFileRequests)}
}

// File sees what the container's first process sees: mounts included.
func (s *filesService) File(ctx context.Context, req *guestv1.FileRequest) (*guestv1.FileResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	select {
	case s.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.turns }()
	// A change would wait until the file system is thawed, and hold up what thaws it.
	if rootfiles.Changes(req) && slices.ContainsFunc(c.freezers, (*freezer).isFrozen) {
		return &guestv1.FileResponse{Errno: uint32(unix.EBUSY)}, nil
	}
	if c.init.hasExited() {
		return nil, fmt.Errorf("container %q has ended: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	root, err := unix.Open(c.root(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("container %q: its root directory: %w: %w", c.id, err, errdefs.ErrFailedPrecondition)
	}
	defer func() { _ = unix.Close(root) }()
	return rootfiles.Do(root, req), nil
}

// root is the root directory that the container's first process sees, mounts included.
func (c *container) root() string {
	c.init.mu.Lock()
	defer c.init.mu.Unlock()
	return fmt.Sprintf("/proc/%d/root", c.init.pid)
}
