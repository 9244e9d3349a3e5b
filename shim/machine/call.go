package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
)

// Call runs one call into the guest with a deadline (see patient), 0 for none but
// the machine's own end. Errors are errdefs' and fit to be shown: they say that the
// machine has ended, that the guest does not answer, or what the guest answered.
func (m *Machine) Call(ctx context.Context, timeout time.Duration, f func(ctx context.Context) error) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = patient(ctx, timeout, m.starved, context.DeadlineExceeded)
		defer cancel()
	}
	err := f(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ttrpc.ErrClosed):
		return m.ended(ctx)
	case errors.Is(err, errUnsent):
		return errdefs.ErrUnavailable.WithMessage(err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("the guest did not answer within %v", timeout))
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	st, ok := status.FromError(err)
	if !ok {
		return errdefs.ErrInternal.WithMessage("the guest's answer is not understood: " + Text(err.Error()))
	}
	return &textError{text: Text(st.Message()), err: errgrpc.ToNative(err)}
}

// ended is the error of a call that the machine's end has cut off.
func (m *Machine) ended(ctx context.Context) error {
	select {
	case <-m.done:
		return errdefs.ErrUnavailable.WithMessage("the machine has ended: " + m.err.Error())
	case <-time.After(endGrace + 2*time.Second): // watch has it by then
	case <-ctx.Done():
	}
	return errdefs.ErrUnavailable.WithMessage("the connection to the guest is lost")
}
