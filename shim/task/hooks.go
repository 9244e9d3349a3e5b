package task

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/shim/hooks"
	"github.com/applevm/applevm/shim/record"
)

// poststopTimeout bounds all poststop hooks together; each has a timeout of its own.
const poststopTimeout = time.Minute

// poststart runs the hooks of a container that has started. If one fails the container
// is stopped, as the runtime specification says since version 1.2 (runtime.md,
// "Lifecycle", step 9), and the error is that of its start.
func (c *container) poststart() error {
	if len(c.hooks.Poststart) == 0 {
		return nil
	}
	err := func() error {
		c.hooksMu.Lock()
		defer c.hooksMu.Unlock()
		if c.over.Err() != nil {
			return nil
		}
		err := hooks.Run(c.over, "poststart", c.hooks.Poststart, c.state(specs.StateRunning))
		if c.over.Err() != nil {
			return nil // it was ended: the container is being removed
		}
		return err
	}()
	if err == nil {
		return nil
	}
	if kerr := c.init.kill(c.ctx, sigkill, true); kerr != nil && !errdefs.IsNotFound(kerr) {
		log.G(c.ctx).WithError(kerr).Warn("a container whose poststart hook has failed was not stopped")
	}
	return runtimeError("OCI runtime start failed", err)
}

// poststop ends poststart hooks that still run and, if owed, runs those that undo
// what the first hooks did.
func (c *container) poststop(owed bool) {
	c.endPoststart()
	c.hooksMu.Lock()
	defer c.hooksMu.Unlock()
	if !owed {
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, poststopTimeout)
	defer cancel()
	if err := hooks.RunAll(ctx, "poststop", c.hooks.Poststop, c.state(specs.StateStopped)); err != nil {
		log.G(c.ctx).WithError(err).Warn("a hook failed")
	}
	if err := c.save(func(r *record.Record) { r.Hooks = false }); err != nil {
		log.G(c.ctx).WithError(err).Warn("hooks may run again")
	}
}

// state is what hooks are told.
func (c *container) state(status specs.ContainerState) specs.State {
	return specs.State{
		Version:     specs.Version,
		ID:          c.id,
		Status:      status,
		Pid:         int(c.pid()),
		Bundle:      c.bundle,
		Annotations: c.annotations,
	}
}
