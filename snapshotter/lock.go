package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lockRoot takes the root directory for this process. The kernel drops the
// lock when the file is closed, thus also when the process is killed.
func lockRoot(root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another applevm-snapshotter uses %s, stop it or choose another root: %w", root, errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	return f, nil
}
