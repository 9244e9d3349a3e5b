package task

import (
	"errors"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/applevm/applevm/vmm"
)

// toWire gives an error the status code that containerd turns back into an
// errdefs error.
func toWire(err error) error { return errgrpc.ToGRPC(err) }

func empty(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, toWire(err)
	}
	return &emptypb.Empty{}, nil
}

// createError is toWire for Create. containerd takes an ErrNotImplemented from
// Create as a sign of an old shim: it goes back to version 2 of the task service
// for good, and the client sees no more than that this one does not exist
// (containerd 2.4.2, core/runtime/v2/task_manager.go). So Create never says it.
func createError(err error) error {
	switch {
	case errdefs.IsNotImplemented(err):
		return toWire(errdefs.ErrFailedPrecondition.WithMessage(err.Error()))
	case errors.Is(err, vmm.ErrInsufficientMemory):
		return toWire(errdefs.ErrResourceExhausted.WithMessage(err.Error()))
	}
	return toWire(err)
}
