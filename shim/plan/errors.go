package plan

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/manifest"
)

// invalid is an errdefs.ErrInvalidArgument with a text of its own.
func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Errorf(format, args...).Error())
}

// unsupported is an errdefs.ErrNotImplemented with a text of its own.
func unsupported(format string, args ...any) error {
	return errdefs.ErrNotImplemented.WithMessage(fmt.Errorf(format, args...).Error())
}

// unavailable is an errdefs.ErrFailedPrecondition with a text of its own.
func unavailable(format string, args ...any) error {
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Errorf(format, args...).Error())
}

func isNoManifest(err error) bool { return errors.Is(err, manifest.ErrNoManifest) }
