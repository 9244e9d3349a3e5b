package task

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/internal/wake"
	"github.com/applevm/applevm/shim/clock"
)

// clockTimeout bounds how long a start waits for the first look at the clock, which
// has been on its way since the container was made.
const clockTimeout = time.Second

// keepClock keeps the machine's clock until the machine ends.
func (c *container) keepClock() {
	k := clock.New(func(ctx context.Context, shift time.Duration, slew bool) (now time.Time, _ error) {
		// No deadline but the machine's end: a guest that was stopped answers when it
		// runs on, and then its clock is looked at again at once.
		err := c.machine.Call(ctx, 0, func(ctx context.Context) error {
			resp, err := c.machine.Guest().ShiftClock(ctx, &guestv1.ShiftClockRequest{ShiftNs: int64(shift), Slew: slew})
			now = time.Unix(0, resp.GetUnixNanos())
			return err
		})
		return now, err
	})
	c.clock = k
	ctx := c.machineContext()
	// Where the system does not tell, Run finds out by a look at the host's clocks.
	if err := wake.Notify(ctx, k.Check); err != nil && !errdefs.IsNotImplemented(err) {
		log.G(c.ctx).WithError(err).Debug("the clock is looked at a second later after a sleep")
	}
	go k.Run(ctx, func(set time.Duration, err error) {
		switch {
		case c.machineEnded():
		case err != nil:
			log.G(c.ctx).WithError(err).Warn("the machine's clock is not kept")
		default:
			log.G(c.ctx).WithField("by", set).Debug("the machine's clock was set")
		}
	})
}

// clockSet waits for the first look at the clock.
func (c *container) clockSet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	select {
	case <-c.clock.Set():
	case <-c.machine.Done():
	case <-ctx.Done():
	}
}
