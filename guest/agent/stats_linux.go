package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/guest/api"
)

// cgroup returns the container's cgroup, which is directly below the root (see
// parseSpec).
func (c *container) cgroup() (*cgroup2.Manager, error) { return cgroup2.Load("/" + c.id) }

// cgroupFile is the path of a file of it.
func (c *container) cgroupFile(name string) string {
	return filepath.Join("/sys/fs/cgroup", c.id, name)
}

// stats reads what the container uses, by the code and in the form of
// containerd's shim for runc (io.containerd.cgroups.v2.Metrics).
func (c *container) stats() (*anypb.Any, error) {
	cg, err := c.cgroup()
	if err != nil {
		return nil, err
	}
	m, err := cg.Stat()
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("container %q has no cgroup any more: %w", c.id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read the cgroup of container %q: %w", c.id, err)
	}
	a, err := anypb.New(m)
	if err != nil {
		return nil, err
	}
	if len(a.Value) > api.MaxStats {
		return nil, fmt.Errorf("the statistics of container %q are %d bytes long, more than %d", c.id, len(a.Value), api.MaxStats)
	}
	return a, nil
}
