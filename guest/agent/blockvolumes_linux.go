package agent

import (
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
)

// mountDisks mounts the disks that the spec's mounts ask for, and makes these binds of them.
// Like the disk of the container's own changes they are frozen while it is paused and when it
// has ended, and so as clean then as after an unmount.
func (c *container) mountDisks(ctx context.Context, spec *specs.Spec) error {
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if m.Type != api.DiskMount {
			continue
		}
		id, readOnly := strings.CutSuffix(m.Source, api.DiskReadOnly)
		path := c.agent.disks.mountPoint(id)
		if !slices.Contains(c.disks, id) {
			if _, err := c.agent.disks.acquire(ctx, id, "ext4", !readOnly); err != nil {
				return err
			}
			c.disks = append(c.disks, id)
			if !readOnly {
				c.freezers = append(c.freezers, newFreezer(path))
			}
		}
		makeBind(m, path)
	}
	return nil
}

// unmountDisks undoes mountDisks. It may be repeated after a failure.
func (c *container) unmountDisks() error {
	for len(c.disks) > 0 {
		if err := c.agent.disks.release(c.disks[0]); err != nil {
			return err
		}
		c.disks = c.disks[1:]
	}
	return nil
}
