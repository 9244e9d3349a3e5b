//go:build !linux

package task

import (
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
)

// mountRoot refuses what only Linux can mount.
func mountRoot(m *types.Mount, _ string) (unmount func() error, err error) {
	if m != nil {
		return nil, errdefs.ErrNotImplemented.WithMessage("the root filesystem is an overlay of directories, which only Linux can mount: " +
			"use the applevm snapshotter (for instance: ctr run --snapshotter applevm)")
	}
	return func() error { return nil }, nil
}
