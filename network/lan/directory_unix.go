//go:build unix

package lan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// socketBuffer holds several of the largest frames.
const socketBuffer = 1 << 20

// lock locks the directory until unlock. With create it is made if need be, else
// the error is fs.ErrNotExist, wrapped.
//
// The lock is the directory's own (flock), which the kernel lets go of with the
// process. Whoever waited for one that has been removed meanwhile tries again.
func lock(ctx context.Context, dir string, create bool) (unlock func(), err error) {
	for {
		if create {
			if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
		}
		f, err := os.OpenFile(dir, syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) && create {
			continue
		}
		if err != nil {
			return nil, err
		}
		locked, err := lockFile(ctx, f)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		now, err := os.Lstat(dir)
		if err == nil && os.SameFile(now, locked) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// lockFile locks an open directory, if it is the user's alone.
func lockFile(ctx context.Context, f *os.File) (fs.FileInfo, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is open to other users: remove it", f.Name())
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return info, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", f.Name(), ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// listen makes a member's socket.
func listen(path string) (*net.UnixConn, error) {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	_ = c.SetReadBuffer(socketBuffer) // the kernel gives what it allows
	return c, nil
}

// dial connects to a member's socket: ECONNREFUSED, wrapped, if it is left over.
func dial(path string) (*net.UnixConn, error) {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	_ = c.SetWriteBuffer(socketBuffer)
	return c, nil
}

// alive tells whether somebody has the socket open.
func alive(path string) bool {
	c, err := dial(path)
	if err == nil {
		_ = c.Close()
		return true
	}
	return !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist)
}
