//go:build !linux

package procroot

import (
	"context"
	"os"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// Root is such a file system. Only Linux has /proc/PID/root.
type Root struct{ Mount *os.File }

// Call sends a request to the guest. It sets the request's container, and has a deadline.
type Call func(context.Context, *guestv1.FileRequest) (*guestv1.FileResponse, error)

// New returns none.
func New() (*Root, error) { return nil, nil }

// Close does nothing.
func (*Root) Close() {}

// Attach does nothing.
func (*Root) Attach(Call) {}
