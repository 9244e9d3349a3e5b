package task

import (
	"errors"
	"fmt"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// mountRoot mounts a root file system that is an overlay of the host's directories at
// dir, and returns what unmounts it: whoever has opened the directory keeps what is in
// it. Without a mount it does nothing. containerd unmounts what a shim that is killed in
// between leaves in its bundle.
func mountRoot(m *types.Mount, dir string) (unmount func() error, err error) {
	if m == nil {
		return func() error { return nil }, nil
	}
	err = mount.All(mount.FromProto([]*types.Mount{m}), dir)
	if errors.Is(err, unix.EPERM) {
		return nil, errdefs.ErrNotImplemented.WithMessage("the root filesystem is an overlay of directories, which only root can mount on the host: " +
			"use the applevm snapshotter (for instance: ctr run --snapshotter applevm), or run containerd as root")
	}
	if err != nil {
		return nil, fmt.Errorf("mount the root filesystem on the host: %w", err)
	}
	return func() error {
		if err := mount.UnmountAll(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount the root filesystem on the host: %w", err)
		}
		return nil
	}, nil
}
