package task

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// turns lets a few at a time do what all want to do at once.
type turns chan struct{}

// in runs f when it is its turn, or returns ctx's error.
func (t turns) in(ctx context.Context, f func() error) error {
	end, err := t.take(ctx)
	if err != nil {
		return err
	}
	defer end()
	return f()
}

// take waits for its turn, which lasts until end is called, or returns ctx's error.
func (t turns) take(ctx context.Context) (end func(), _ error) {
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// takeWithin is take for what the guest may not have answered yet: what is the last
// request's name.
func (t turns) takeWithin(ctx context.Context, timeout time.Duration, what string) (end func(), _ error) {
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	end, err := t.take(wait)
	if err != nil && ctx.Err() == nil {
		err = errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("the guest has not answered the last %s within %v", what, timeout))
	}
	return end, err
}
