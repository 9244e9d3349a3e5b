package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// volume is a directory that the host shares, and where in the container it will be.
type volume struct{ dir, destination string }

// fill copies into a new volume what the root file system has in its place, with owners,
// modes and times. A volume in which there is something stays as it is.
func (v volume) fill(root string) (err error) {
	there, err := os.ReadDir(v.dir)
	if err != nil || len(there) > 0 {
		return err
	}
	fd, err := resolveIn(root, v.destination, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("fill the new volume at %s: %w", v.destination, err)
	}
	defer func() { _ = unix.Close(fd) }()
	defer func() {
		if err == nil {
			return
		}
		err = fmt.Errorf("fill the new volume at %s from the image: %w", v.destination, err)
		// The next start finds it new, and not with a part.
		made, _ := os.ReadDir(v.dir)
		for _, e := range made {
			err = errors.Join(err, os.RemoveAll(filepath.Join(v.dir, e.Name())))
		}
	}()
	// Labels of security modules are the machine's.
	return fs.CopyDir(v.dir, fmt.Sprintf("/proc/self/fd/%d/.", fd), fs.WithAllowXAttrErrors())
}
