package agent

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// Requests of ioctl_fifreeze(2): _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

// pause stops the container's processes, and then freezes the file system that
// takes its changes: all is written out and its journal is empty, so that the host
// can read the disk as it is.
func (c *container) pause() error {
	lc, err := c.running()
	if err != nil {
		return err
	}
	if err := lc.Pause(); err != nil {
		return err
	}
	// The processes must stand still first: one that waits for a frozen file
	// system cannot be stopped.
	if err := c.freeze(); err != nil {
		_ = lc.Resume()
		return err
	}
	return nil
}

// resume undoes pause.
func (c *container) resume() error {
	lc, err := c.running()
	if err != nil {
		return err
	}
	if err := c.thaw(); err != nil {
		return err
	}
	if err := lc.Resume(); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// isPaused reports whether the container's processes stand still.
func (c *container) isPaused() bool {
	status, err := c.lc.Status()
	return err == nil && status == libcontainer.Paused
}

func (c *container) freeze() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen || c.rootfs.changes == "" {
		return nil
	}
	if err := freezeIoctl(c.rootfs.changes, fiFreeze); err != nil {
		return fmt.Errorf("freeze the container's file system: %w", err)
	}
	c.frozen = true
	return nil
}

// thaw must come before whatever ends processes, which may have to write at their
// end, and before an unmount, which would leave a frozen file system behind.
func (c *container) thaw() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.thawLocked()
}

func (c *container) thawLocked() error {
	if !c.frozen {
		return nil
	}
	if err := freezeIoctl(c.rootfs.changes, fiThaw); err != nil {
		return fmt.Errorf("thaw the container's file system: %w", err)
	}
	c.frozen = false
	return nil
}

func freezeIoctl(dir string, request uint) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), request, 0)
}
