package virtiofs

import (
	"golang.org/x/sys/unix"
)

// The guest's kernel keeps what it has seen for as long as it has memory, and nothing
// tells it to forget. So a file that it has not asked for lately has no descriptor here: it
// sleeps, and is opened again by its name in its directory when the guest asks. Files that
// the guest has open do not sleep. One that was moved or removed by others meanwhile
// is stale (ESTALE); the guest's kernel looks its path up again then.

const (
	// maxAwake is how many files that nobody uses keep their descriptors, at the most.
	maxAwake = 8 << 10
	// maxNodes bounds what the guest can make the host remember.
	maxNodes = 1 << 20
	// maxDepth is how many directories above each other are opened again: a path has no
	// more (PATH_MAX), only what others move about.
	maxDepth = unix.PathMax / 2
	// looksForSleep bounds how many files are looked at for one that can sleep.
	looksForSleep = 64
)

// use notes that n is used; done must follow. It opens n if it sleeps, without fs.mu, which
// the caller holds.
func (fs *fileSystem) use(n *node) error {
	n.uses++
	if n.awake != nil {
		fs.awake.MoveToFront(n.awake)
	}
	if n.fd >= 0 {
		return nil
	}
	// From n up to the first directory that does not sleep, and down again.
	var path []*node
	at := n
	for ; at.fd < 0; at = at.parent {
		if at.parent == nil || len(path) == maxDepth {
			fs.release(&n.descriptor)
			return unix.ESTALE
		}
		path = append(path, at)
	}
	at.uses++
	for i := len(path) - 1; i >= 0; i-- {
		next := path[i]
		next.uses++
		err := fs.wake(at, next)
		fs.release(&at.descriptor)
		at = next
		if err != nil {
			fs.release(&at.descriptor)
			fs.release(&n.descriptor)
			return err
		}
	}
	fs.release(&at.descriptor) // n, which is used once more
	return nil
}

// wake opens n in dir. Both are used, and fs.mu is held, but not meanwhile.
func (fs *fileSystem) wake(dir, n *node) error {
	name := n.name
	fs.mu.Unlock()
	fd, err := fs.openChild(dir, name)
	var stx *unix.Statx_t
	if err == nil {
		stx, err = stat(fd)
	}
	fs.mu.Lock()
	switch {
	case err == nil && n.fd >= 0: // another has been faster
		_ = unix.Close(fd)
		return nil
	case err == unix.ENOENT, err == nil && keyOf(stx) != n.key: //nolint:errorlint // system calls return it bare
		err = unix.ESTALE
	case err == nil && !fs.room():
		err = unix.ENFILE
	case err == nil:
		fs.keep(n, fd)
		return nil
	}
	if fd >= 0 {
		_ = unix.Close(fd)
	}
	return err
}

// room makes room for a descriptor, and tells whether there is.
func (fs *fileSystem) room() bool {
	fs.letSleep()
	return !fs.closed && fs.open < fs.limit
}

// keep gives n, which has none, a descriptor, for which there is room.
func (fs *fileSystem) keep(n *node, fd int) {
	n.fd = fd
	fs.open++
	if fs.nodes[n.id] == n && n.parent != nil {
		n.awake = fs.awake.PushFront(n)
	}
}

// letSleep takes the descriptor of the file that was used longest ago, if there are too
// many.
func (fs *fileSystem) letSleep() {
	for range looksForSleep {
		last := fs.awake.Back()
		if last == nil || fs.awake.Len() < fs.maxAwake && fs.open < fs.limit {
			return
		}
		n := last.Value.(*node)
		if n.uses > 1 {
			fs.awake.MoveToFront(last)
			continue
		}
		fs.awake.Remove(last)
		n.awake = nil
		fs.closeFD(&n.descriptor)
	}
}

// moved notes the new name of a file that the guest has moved.
func (fs *fileSystem) moved(dir *node, name string) {
	fd, err := fs.openChild(dir, name)
	if err != nil {
		return
	}
	stx, err := stat(fd)
	_ = unix.Close(fd)
	if err != nil {
		return
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if n := fs.byFile[keyOf(stx)]; n != nil && n.parent != nil {
		fs.attach(n, dir, name)
	}
}
