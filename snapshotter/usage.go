package snapshotter

import (
	"fmt"
	"os"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// blockUnit is the unit of st_blocks, whatever the file system's block size
// (stat(2) on Linux and on macOS).
const blockUnit = 512

// fileUsage returns what one file takes on disk.
func fileUsage(path string) (snapshots.Usage, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return snapshots.Usage{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return snapshots.Usage{}, fmt.Errorf("usage of %s: %w", path, errdefs.ErrNotImplemented)
	}
	return snapshots.Usage{Inodes: 1, Size: st.Blocks * blockUnit}, nil
}
