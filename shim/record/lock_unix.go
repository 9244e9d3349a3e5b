//go:build unix

package record

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const lockName = "shim.lock"

// killTimeout bounds the wait for a killed shim's end.
const killTimeout = 3 * time.Second

// Own marks the calling process as the one that serves the bundle, until its
// end. The file must stay open: the lock goes with the first close.
//
// It is a POSIX record lock (fcntl F_SETLK), because F_GETLK tells the holder's
// process identifier: no stale identifier can be taken for a shim.
func Own(bundle string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(bundle, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	l := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &l); err != nil {
		f.Close()
		return nil, fmt.Errorf("another shim serves %s: %w", bundle, err)
	}
	return f, nil
}

// owner returns the process that holds the bundle, 0 if there is none.
func owner(bundle string) (int, error) {
	f, err := os.OpenFile(filepath.Join(bundle, lockName), os.O_RDWR, 0)
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	l := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &l); err != nil {
		return 0, err
	}
	if l.Type == syscall.F_UNLCK {
		return 0, nil
	}
	return int(l.Pid), nil
}

// killOwner kills the shim that serves the bundle and waits for its end.
func killOwner(ctx context.Context, bundle string) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	for {
		pid, err := owner(bundle)
		if err != nil || pid <= 0 || pid == os.Getpid() {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			return fmt.Errorf("kill shim %d: %w", pid, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("shim %d does not end: %w", pid, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
