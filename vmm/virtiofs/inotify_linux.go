package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// inotify is an instance of inotify(7). A library's would know files by their paths: here
// descriptors name them, so that none can be put in another's place. add and remove must not be
// called beside close, or after it.
type inotify struct {
	file *os.File
	fd   int // the file's, which File.Fd would make blocking
}

// event is one that inotify has told of.
type event struct {
	watch int32
	mask  uint32
	name  string
}

func openInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return nil, errors.New("this user has too many watchers of files: raise the kernel parameter fs.inotify.max_user_instances")
	}
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	return &inotify{file: os.NewFile(uintptr(fd), "inotify"), fd: fd}, nil
}

// add watches what the descriptor fd names.
func (i *inotify) add(fd int, mask uint32) (int32, error) {
	wd, err := ignoringEINTR(func() (int, error) { return unix.InotifyAddWatch(i.fd, procPath(fd), mask) })
	if errors.Is(err, unix.ENOSPC) {
		err = errors.New("this user watches too many files: raise the kernel parameter fs.inotify.max_user_watches")
	}
	return int32(wd), err
}

func (i *inotify) remove(wd int32) {
	_, _ = unix.InotifyRmWatch(i.fd, uint32(wd)) // the file may be gone, and its watch with it
}

// read waits for events. It returns an error when i is closed.
func (i *inotify) read(buf []byte) ([]event, error) {
	n, err := i.file.Read(buf)
	if err != nil {
		return nil, err
	}
	var out []event
	// struct inotify_event: descriptor, mask, cookie, length of the name, which is filled
	// up with NULs.
	for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
		e := event{watch: int32(binary.NativeEndian.Uint32(b)), mask: binary.NativeEndian.Uint32(b[4:])}
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		e.name = unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end])
		out = append(out, e)
		b = b[end:]
	}
	return out, nil
}

func (i *inotify) close() { _ = i.file.Close() }
