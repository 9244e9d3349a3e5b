package task

import (
	"context"
	"fmt"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
)

// maxUnanswered is how many requests of callThrough may be without an answer that
// their clients do not wait for any more; those in flight when it is reached are more.
const maxUnanswered = 64

// callThrough is call for what must not stay half done in the guest. The client
// waits for timeout at most, but the request goes on until the guest answers or its
// machine ends: a guest that is stopped gets it when it runs on. then is called once,
// with the guest's answer; if late, the client has been told of a failure.
func (c *container) callThrough(ctx context.Context, timeout time.Duration, f func(context.Context, taskapi.TTRPCTaskService) error, then func(err error, late bool)) error {
	if n := c.unanswered.Load(); n >= maxUnanswered {
		err := errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("container %s: the guest has not answered %d requests", c.id, n))
		then(err, false)
		return err
	}
	answer := make(chan error, 1)
	go func() { answer <- c.call(c.ctx, 0, f) }()
	ctx, cancel := c.machine.Patient(ctx, timeout, errdefs.ErrUnavailable.WithMessage(
		fmt.Sprintf("container %s: the guest did not answer within %v", c.id, timeout)))
	defer cancel()
	var err error
	select {
	case err = <-answer:
		then(err, false)
		return err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.unanswered.Add(1)
	go func() {
		late := <-answer
		c.unanswered.Add(-1)
		then(late, true)
	}()
	return err
}
