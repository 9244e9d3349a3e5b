//go:build unix

// Package imagelock gives disk images one writer, or several readers, among the processes of a user. The
// locks are flock(2)'s on files of their own and not on the images: Virtualization.framework's own process
// opens these, and what it locks is not documented.
package imagelock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse is returned, wrapped with the image's path, where another has it.
var ErrInUse = errors.New("it is in use by another machine")

// patience is for how long a lock is tried: whoever releases one holds it alone for a moment.
const patience = 100 * time.Millisecond

// Lock is held until Release, or the end of the process.
type Lock struct {
	file *os.File
	name string
}

// Dir is the directory of a user's lock files.
func Dir() string {
	if d, err := os.UserCacheDir(); err == nil {
		return filepath.Join(d, "applevm", "disks")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("applevm-%d", os.Getuid()), "disks")
}

// Acquire locks the image at path against all others, or with shared against those who write. dir is for lock files, which are named by the images' devices and inodes; it is made.
func Acquire(dir, path string, shared bool) (*Lock, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	how := unix.LOCK_EX | unix.LOCK_NB
	if shared {
		how = unix.LOCK_SH | unix.LOCK_NB
	}
	name := filepath.Join(dir, fmt.Sprintf("%x-%x", uint64(st.Dev), st.Ino)) //nolint:unconvert // of another type on macOS
	for end := time.Now().Add(patience); ; {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		switch err := flock(f, how); {
		case errors.Is(err, unix.EWOULDBLOCK):
			_ = f.Close()
			if time.Now().After(end) {
				return nil, fmt.Errorf("%s: %w", path, ErrInUse)
			}
			time.Sleep(5 * time.Millisecond)
			continue
		case err != nil:
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if isAt(f, name) {
			return &Lock{f, name}, nil
		}
		_ = f.Close() // it was removed meanwhile
	}
}

// Release gives the lock back. The last one who does so removes the file.
func (l *Lock) Release() {
	if flock(l.file, unix.LOCK_EX|unix.LOCK_NB) == nil && isAt(l.file, l.name) {
		_ = os.Remove(l.name)
	}
	_ = l.file.Close()
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// isAt tells whether a name is still f's.
func isAt(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(name)
	return err == nil && os.SameFile(a, b)
}
