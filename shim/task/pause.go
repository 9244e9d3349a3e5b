package task

import (
	"context"
	"fmt"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/log"
)

// pause freezes the container.
func (c *container) pause(ctx context.Context) error {
	end, err := c.pausing.takeWithin(ctx, callTimeout, "pause or resume")
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return c.callThrough(ctx, pauseTimeout, func(ctx context.Context, t taskapi.TTRPCTaskService) error {
		_, err := t.Pause(ctx, &taskapi.PauseRequest{ID: c.id})
		return err
	}, func(err error, late bool) {
		defer end()
		switch {
		case err != nil:
		case late:
			c.undoPause()
		default:
			c.setPaused(true)
			c.s.events.send(&apievents.TaskPaused{ContainerID: c.id})
		}
	})
}

// undoTimeout is how long undoPause tries.
const undoTimeout = 5 * time.Minute

// undoPause is for a pause that came too late: its client was told that it failed,
// and will not resume. So it tries again where a client would: a disk that is slow thaws
// later than the guest waits for it.
func (c *container) undoPause() {
	log.G(c.ctx).Warn("the guest has paused the container later than its client waited: resuming it")
	for end := time.Now().Add(undoTimeout); ; time.Sleep(time.Second) {
		err := c.call(c.ctx, 0, c.resumeInGuest)
		switch {
		case err == nil, c.machineEnded(), c.init.hasExited():
			return
		case time.Now().After(end):
			log.G(c.ctx).WithError(err).Error("the guest does not resume the container")
			c.setPaused(true)
			return
		}
		log.G(c.ctx).WithError(err).Warn("the guest has not resumed the container yet")
	}
}

// resume undoes pause. One that comes late is as good.
func (c *container) resume(ctx context.Context) error {
	end, err := c.pausing.takeWithin(ctx, callTimeout, "pause or resume")
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return c.callThrough(ctx, pauseTimeout, c.resumeInGuest, func(err error, _ bool) {
		defer end()
		if err == nil {
			c.setPaused(false)
			c.clock.Check()
			c.s.events.send(&apievents.TaskResumed{ContainerID: c.id})
		}
	})
}

func (c *container) resumeInGuest(ctx context.Context, t taskapi.TTRPCTaskService) error {
	_, err := t.Resume(ctx, &taskapi.ResumeRequest{ID: c.id})
	return err
}

func (c *container) setPaused(v bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = v
}
