package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
)

// How long a caller waits for a freeze or a thaw. Each is shorter than what its
// caller on the host waits (shim/task), so that the host is told.
const (
	pauseFreezeTimeout = 25 * time.Second
	// resumeThawTimeout: a container that is not resumed stays paused, whatever its client did that for.
	resumeThawTimeout = 25 * time.Second
	// exitFreezeTimeout bounds how late an exit is told because of the disk.
	exitFreezeTimeout = 20 * time.Second
	// endThawTimeout bounds what comes before the end of processes.
	endThawTimeout = 2 * time.Second
)

// pause stops the container's processes, and then freezes the file systems that
// take its changes: all is written out and its journal is empty, so that the host
// can read the disk as it is.
func (c *container) pause() error {
	c.pauseMu.Lock()
	defer c.pauseMu.Unlock()
	lc, err := c.running()
	if err != nil {
		return err
	}
	if err := lc.Pause(); err != nil {
		return err
	}
	// The processes must stand still first: one that waits for a frozen file
	// system cannot be stopped.
	if err := c.freeze(pauseFreezeTimeout); err != nil {
		_ = lc.Resume()
		return err
	}
	return nil
}

// resume undoes pause.
func (c *container) resume() error {
	c.pauseMu.Lock()
	defer c.pauseMu.Unlock()
	lc, err := c.running()
	if err != nil {
		return err
	}
	if err := c.thaw(resumeThawTimeout); err != nil {
		return err
	}
	if err := lc.Resume(); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// isPaused reports whether the container's processes stand still. It asks the
// kernel, for libcontainer does not answer while it starts a process.
func (c *container) isPaused() bool {
	b, err := os.ReadFile(c.cgroupFile("cgroup.freeze"))
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// whileRunning runs f, which makes a process, unless the container is paused, and
// lets no pause come in between: a process that stands still at its start holds up
// libcontainer, the resuming included.
func (c *container) whileRunning(f func() error) error {
	c.pauseMu.Lock()
	defer c.pauseMu.Unlock()
	if c.isPaused() {
		return errPaused
	}
	return f()
}

var errPaused = fmt.Errorf("cannot start a process in a paused container: resume it first: %w", errdefs.ErrFailedPrecondition)

func (c *container) freeze(timeout time.Duration) error {
	return c.eachFreezer(func(f *freezer) error { return f.freeze(timeout) })
}

func (c *container) eachFreezer(do func(*freezer) error) error {
	var errs []error
	if c.syncer != nil {
		errs = append(errs, do(c.syncer))
	}
	for _, f := range c.freezers {
		errs = append(errs, do(f))
	}
	return errors.Join(errs...)
}

// thaw must come before an unmount, which would leave a frozen file system behind.
func (c *container) thaw(timeout time.Duration) error {
	return c.eachFreezer(func(f *freezer) error { return f.thaw(timeout) })
}

// thawForEnd comes before whatever ends processes, which may have to write at their
// end. They are ended even if it fails: what is only late comes about all the same.
func (c *container) thawForEnd() {
	if err := c.thaw(endThawTimeout); err != nil {
		logrus.Warnf("container %s: %v", c.id, err)
	}
}
