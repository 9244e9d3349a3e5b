package agent

import (
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// resolveIn opens the file at name as a process whose root directory is root would
// see it: symlinks in the path, which the image may have made hostile, cannot lead
// out of root. Without O_PATH or O_DIRECTORY among the flags it would open FIFOs and
// devices, too.
func resolveIn(root, name string, flags uint64) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.Openat2(dir, path.Clean("/"+name), &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// openIn opens the regular file at name in root (resolveIn), never a FIFO or device.
func openIn(root, name string) (*os.File, error) {
	fd, err := resolveIn(root, name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	// An O_PATH descriptor is opened for reading by way of its magic link.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// readLimit reads at most n bytes of a file in root.
func readLimit(root, name string, n int64) ([]byte, error) {
	f, err := openIn(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, n))
}
