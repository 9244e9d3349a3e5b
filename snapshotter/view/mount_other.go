//go:build !linux

package view

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// Serve is not implemented on this system, where nobody mounts snapshots.
func Serve(context.Context, string, func()) error {
	return fmt.Errorf("show snapshots to clients that mount them: %w", errdefs.ErrNotImplemented)
}

// IsMounted reports whether a view is mounted.
func IsMounted(string) bool { return false }
