package agent

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
)

// raisePathEvents has the kernel tell who watches places of a share, which somebody else than the shim
// serves, that there is something else now.
//
// That server does what it is asked to, so it may be asked only for what changes nothing: to give a file the
// mode that it has. The kernel raises IN_ATTRIB for that, for the file and in its directory, and
// knows the file's size and times from the answer. (The time of the last change, which would raise
// IN_MODIFY, could be put back that way, if the host writes just then.) Where there is no file any more,
// or one whose mode cannot be set, it is the directory.
func (c *container) raisePathEvents(s share, mount int, changed [][]byte) error {
	if len(changed) > api.MaxFileEvents {
		return invalid("%d changed files, more than %d", len(changed), api.MaxFileEvents)
	}
	for _, b := range changed {
		p := string(b)
		if !isSharePath(p) {
			return invalid("%q is no path in a share", p)
		}
		// Of a file that has changed again meanwhile there will be another event.
		_ = c.watches.raise(sharePlace{s.tag, p}, mount)
	}
	select {
	case c.appeared <- struct{}{}:
	default:
	}
	return nil
}

func (w *pathWatches) raise(p sharePlace, mount int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	revalidate(mount, p.path)
	fd, stx, err := openShared(mount, p.path)
	switch {
	case err == nil:
		defer func() { _ = unix.Close(fd) }()
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR): // gone, or not to be followed
		stx = &unix.Statx_t{}
	default:
		return err
	}
	if w.isOwnDoing(p, stx) {
		return nil
	}
	// Who watches the file that was there before hears of it if the server still knows it.
	w.raiseOthers(p, stx.Ino, mount)
	if kind := stx.Mode & unix.S_IFMT; (kind == unix.S_IFREG || kind == unix.S_IFDIR) && sameMode(fd, stx) == nil {
		return nil
	}
	dir, stx, err := openShared(mount, path.Dir(p.path))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	return sameMode(dir, stx)
}

// revalidate has the kernel ask the share's server whether a name is still what it knows: it does so for
// what a rename would replace. This one does nothing: it is to the same name, and only if there is none.
func revalidate(mount int, p string) {
	dir, _, err := openShared(mount, path.Dir(p))
	if err != nil || p == "." {
		return
	}
	defer func() { _ = unix.Close(dir) }()
	_ = unix.Renameat2(dir, path.Base(p), dir, path.Base(p), unix.RENAME_NOREPLACE)
}

// openShared opens what is at a path in a share, without links and other mounts, as a name only.
func openShared(mount int, p string) (int, *unix.Statx_t, error) {
	fd, err := unix.Openat2(mount, p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, nil, err
	}
	stx, err := freshStat(fd)
	if err != nil {
		_ = unix.Close(fd)
		return -1, nil, err
	}
	return fd, stx, nil
}

// freshStat asks the share's server, whatever the kernel believes to know.
func freshStat(fd int) (*unix.Statx_t, error) {
	var stx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &stx)
	return &stx, err
}

// sameMode gives a file the mode that it has.
func sameMode(fd int, stx *unix.Statx_t) error {
	return unix.Fchmodat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), uint32(stx.Mode)&^unix.S_IFMT, 0)
}
