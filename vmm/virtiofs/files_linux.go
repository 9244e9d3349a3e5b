package virtiofs

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// newFiles returns a file system that holds single files. Its root is a directory that
// was removed: the kernel lets nothing be made in it, and it holds no name; those that
// it shows are looked up in a table.
func newFiles(paths []string, readOnly bool) (_ *fileSystem, err error) {
	dir, err := os.MkdirTemp("", "applevm-")
	if err != nil {
		return nil, fmt.Errorf("share files: %w", err)
	}
	fs, err := newFileSystem(dir, readOnly)
	if err := os.Remove(dir); err != nil {
		return nil, fmt.Errorf("share files: %w", err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = fs.close()
		}
	}()
	fs.files = map[string]int{}
	for i, path := range paths {
		fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) })
		if err != nil {
			return nil, fmt.Errorf("share the file %s: %w", path, err)
		}
		fs.files[strconv.Itoa(i)] = fd
		st, err := stat(fd)
		if err != nil {
			return nil, fmt.Errorf("share the file %s: %w", path, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil, fmt.Errorf("share the file %s: it is not a regular file", path)
		}
	}
	return fs, nil
}
