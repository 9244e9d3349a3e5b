package agent

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of ioctl_fifreeze(2): _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

// freezer freezes and thaws one file system. The kernel takes as long for it as the
// disk does for what is not written yet, and cannot be interrupted. So a caller
// waits only as long as it says; what it wanted last comes about all the same.
type freezer struct {
	request func(uint) error // makes one of the requests above

	mu     sync.Mutex
	frozen bool          // as far as requests have succeeded
	want   bool          // frozen is to become this
	busy   chan struct{} // closed when the request under way is over; nil if none is
	err    error         // of the last request
}

func newFreezer(dir string) *freezer {
	return &freezer{request: func(request uint) error {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.IoctlSetInt(int(f.Fd()), request, 0)
	}}
}

// newSyncer returns a freezer for file systems that the host can read at any time: it
// only writes out what the kernel has not written yet.
func newSyncer(dirs []string) *freezer {
	return &freezer{request: func(request uint) error {
		if request != fiFreeze {
			return nil
		}
		var errs []error
		for _, d := range dirs {
			errs = append(errs, syncFS(d))
		}
		return errors.Join(errs...)
	}}
}

func syncFS(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Syncfs(fd)
}

// errSlow is in the error of a freeze or thaw that takes longer than its caller waits.
var errSlow = errors.New("the disk is too slow")

// freeze writes out everything, empties the journal and stops all writes. One that
// takes longer than timeout is undone when it has come about.
func (f *freezer) freeze(timeout time.Duration) error {
	if err := f.set(true, timeout); err != nil {
		return fmt.Errorf("freeze the container's file system: %w", err)
	}
	return nil
}

// thaw undoes freeze, also one that is under way.
func (f *freezer) thaw(timeout time.Duration) error {
	if err := f.set(false, timeout); err != nil {
		return fmt.Errorf("thaw the container's file system: %w", err)
	}
	return nil
}

// isFrozen reports whether the file system is frozen and stays so.
func (f *freezer) isFrozen() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frozen && f.want && f.busy == nil
}

func (f *freezer) set(frozen bool, timeout time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.want = frozen
	if f.busy == nil {
		if f.frozen == frozen {
			return nil
		}
		f.busy = make(chan struct{})
		go f.work()
	}
	busy := f.busy
	f.mu.Unlock()
	timer := time.NewTimer(timeout)
	select {
	case <-busy:
	case <-timer.C:
	}
	timer.Stop()
	f.mu.Lock()
	switch {
	case f.busy == nil && f.frozen == frozen:
		return nil
	case f.busy == nil && f.err != nil:
		return f.err
	case f.want != frozen:
		return errors.New("the opposite was asked for meanwhile")
	}
	f.want = false
	return fmt.Errorf("%w: not done within %v", errSlow, timeout)
}

// work makes requests until all is as it is wanted.
func (f *freezer) work() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = nil
	for f.frozen != f.want && f.err == nil {
		frozen, request := f.want, uint(fiThaw)
		if frozen {
			request = fiFreeze
		}
		f.mu.Unlock()
		err := f.request(request)
		f.mu.Lock()
		if f.err = err; err == nil {
			f.frozen = frozen
		}
	}
	f.want = f.frozen
	close(f.busy)
	f.busy = nil
}
