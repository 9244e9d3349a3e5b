// Package inotify is inotify(7) for files that descriptors name. A library's knows them by their paths:
// here none can be put in another's place.
package inotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Instance is an instance of inotify. Add and Remove must not be called beside Close, or after it.
type Instance struct {
	file *os.File
	fd   int // the file's, which File.Fd would make blocking
}

// Event is what inotify tells of.
type Event struct {
	// Watch is what Add returned.
	Watch int32
	// Mask is made of IN_* bits.
	Mask uint32
	// Name is the file's in a directory that is watched.
	Name string
}

// Open makes an instance.
func Open() (*Instance, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return nil, errors.New("this user has too many watchers of files: raise the kernel parameter fs.inotify.max_user_instances")
	}
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	return &Instance{file: os.NewFile(uintptr(fd), "inotify"), fd: fd}, nil
}

// FD is the descriptor's number.
func (i *Instance) FD() int { return i.fd }

// Add watches what the descriptor fd names, for the events in mask.
func (i *Instance) Add(fd int, mask uint32) (watch int32, err error) {
	var wd int
	err = again(func() (err error) {
		wd, err = unix.InotifyAddWatch(i.fd, fmt.Sprintf("/proc/self/fd/%d", fd), mask)
		return err
	})
	if errors.Is(err, unix.ENOSPC) {
		err = errors.New("this user watches too many files: raise the kernel parameter fs.inotify.max_user_watches")
	}
	return int32(wd), err
}

// Remove undoes an Add.
func (i *Instance) Remove(watch int32) {
	_, _ = unix.InotifyRmWatch(i.fd, uint32(watch)) // the file may be gone, and its watch with it
}

// Read waits for events. It returns an error when i is closed.
func (i *Instance) Read(buf []byte) ([]Event, error) {
	n, err := i.file.Read(buf)
	if err != nil {
		return nil, err
	}
	return parse(buf[:n]), nil
}

// TryRead is Read without waiting: it returns none if there are none.
func (i *Instance) TryRead(buf []byte) ([]Event, error) {
	var n int
	err := again(func() (err error) { n, err = unix.Read(i.fd, buf); return err })
	if errors.Is(err, unix.EAGAIN) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parse(buf[:n]), nil
}

// Wait waits until there are events. It returns an error when i is closed.
func (i *Instance) Wait() error {
	c, err := i.file.SyscallConn()
	if err != nil {
		return err
	}
	return c.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, syscall.EINTR)
	})
}

// Close ends it.
func (i *Instance) Close() { _ = i.file.Close() }

// parse reads struct inotify_event: descriptor, mask, cookie, length of the name, which is filled
// up with NULs.
func parse(b []byte) (out []Event) {
	for len(b) >= unix.SizeofInotifyEvent {
		e := Event{Watch: int32(binary.NativeEndian.Uint32(b)), Mask: binary.NativeEndian.Uint32(b[4:])}
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		e.Name = unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end])
		out = append(out, e)
		b = b[end:]
	}
	return out
}

func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
