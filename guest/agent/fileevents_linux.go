package agent

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// raiseFileEvents has the kernel tell who watches files of a share what was done to them: it
// does the same once more, in requests by which the share knows that nothing is to be done.
func (c *container) raiseFileEvents(req *guestv1.RaiseFileEventsRequest) error {
	if n := len(req.GetEvents()); n > api.MaxFileEvents {
		return invalid("%d events of files, more than %d", n, api.MaxFileEvents)
	}
	// They are not unmounted meanwhile.
	c.sharesMu.RLock()
	defer c.sharesMu.RUnlock()
	i := slices.IndexFunc(c.shares, func(s share) bool { return s.tag == req.GetShare() })
	if i < 0 {
		return invalid("container %q has no share %q", c.id, req.GetShare())
	}
	mount, err := os.Open(c.shares[i].path)
	if err != nil {
		return err
	}
	defer mount.Close()
	if len(req.GetChanged()) > 0 {
		return c.raisePathEvents(c.shares[i], int(mount.Fd()), req.GetChanged())
	}
	for _, e := range req.GetEvents() {
		// A file that is watched no more needs no event, and of one that has changed again
		// there will be another.
		_ = raise(int(mount.Fd()), req.GetGroup(), e)
		if e.GetKind() == guestv1.FileEvent_APPEARED {
			select {
			case c.appeared <- struct{}{}:
			default:
			}
		}
	}
	return nil
}

func raise(mount int, group uint32, e *guestv1.FileEvent) error {
	name := string(e.GetName())
	if len(name) > api.MaxFileName || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return fmt.Errorf("%q is no name of a file", name)
	}
	// It is in the kernel's memory as long as it is watched. Nothing is opened.
	fd, err := unix.OpenByHandleAt(mount, nodeHandle(e.GetNode()), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	as := group + uint32(e.GetKind())
	if name == "" {
		if e.GetKind() != guestv1.FileEvent_CHANGED {
			return errors.New("a file without a name can only be changed")
		}
		return asGroup(as, func() error { return touch(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), 0, e.GetAttributes()) })
	}
	return asGroup(as, func() error {
		switch e.GetKind() {
		case guestv1.FileEvent_CHANGED:
			return touch(fd, name, unix.AT_SYMLINK_NOFOLLOW, e.GetAttributes())
		case guestv1.FileEvent_APPEARED:
			return appear(fd, name, e.GetType())
		case guestv1.FileEvent_FILE_GONE:
			return unix.Unlinkat(fd, name, 0)
		case guestv1.FileEvent_DIRECTORY_GONE:
			return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
		}
		return fmt.Errorf("event %d is not known", e.GetKind())
	})
}

// touch sets a file's time of modification, for IN_MODIFY, or with attributes both times, for
// IN_ATTRIB (fsnotify_change of include/linux/fsnotify.h).
func touch(dir int, name string, flags int, attributes bool) error {
	now := unix.NsecToTimespec(time.Now().UnixNano())
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, now}
	if attributes {
		times[0] = now
	}
	return unix.UtimesNanoAt(dir, name, times, flags)
}

// appear makes the file that is there. If the kernel has found it already it goes first,
// except a directory, because there may be mounts in it.
func appear(dir int, name string, mode uint32) error {
	mk := func() error {
		switch mode & unix.S_IFMT {
		case unix.S_IFDIR:
			return unix.Mkdirat(dir, name, 0o700)
		case unix.S_IFLNK:
			return unix.Symlinkat("-", dir, name)
		}
		return unix.Mknodat(dir, name, mode&unix.S_IFMT|0o600, 0)
	}
	err := mk()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil {
		return err
	}
	return mk()
}

// asGroup calls do with another group for what is done to files.
func asGroup(group uint32, do func() error) error {
	runtime.LockOSThread()
	old, _ := unix.SetfsgidRetGid(int(group))
	defer func() {
		_, _ = unix.SetfsgidRetGid(old)
		if now, err := unix.SetfsgidRetGid(-1); err == nil && now == old {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
	}()
	if now, err := unix.SetfsgidRetGid(-1); err != nil || uint32(now) != group {
		return fmt.Errorf("take the group %d: %w", group, err)
	}
	return do()
}
