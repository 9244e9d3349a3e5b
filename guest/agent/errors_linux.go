package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/applevm/applevm/guest/api"
)

// intercept wraps every call: a panic becomes an error of that call alone, and
// errors get the status code that the client's errdefs turns back.
func intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			logrus.Errorf("%s: panic: %v\n%s", info.FullMethod, p, debug.Stack())
			resp, err = nil, status.Errorf(codes.Internal, "the agent failed in %s: %v", info.FullMethod, p)
		}
	}()
	resp, err = method(ctx, unmarshal)
	if err != nil {
		return nil, toStatus(err)
	}
	return resp, nil
}

// toStatus converts an errdefs error to one that keeps its kind over ttrpc.
func toStatus(err error) error {
	code := codes.Unknown
	switch {
	case errdefs.IsInvalidArgument(err):
		code = codes.InvalidArgument
	case errdefs.IsNotFound(err):
		code = codes.NotFound
	case errdefs.IsAlreadyExists(err):
		code = codes.AlreadyExists
	case errdefs.IsFailedPrecondition(err):
		code = codes.FailedPrecondition
	case errdefs.IsUnavailable(err):
		code = codes.Unavailable
	case errdefs.IsNotImplemented(err):
		code = codes.Unimplemented
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	}
	text := err.Error()
	if len(text) > api.MaxErrorText {
		text = text[:api.MaxErrorText]
	}
	return status.Error(code, text)
}

// notImplemented is the answer of a call that is not built.
func notImplemented(name string) error {
	return fmt.Errorf("%s is not implemented: %w", name, errdefs.ErrNotImplemented)
}

// invalid is the answer to a request that can never work.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), errdefs.ErrInvalidArgument)
}
