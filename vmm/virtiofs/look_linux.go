package virtiofs

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
)

// look finds out what to tell of changes.
type look struct {
	fs    *fileSystem
	known map[entry]fileKey // what the guest knows by names; nil until it is needed
}

// at tells what there is at a place now, after events of inotify's, as far as it was not the
// guest's doing. What of the events cannot be judged yet it returns.
func (l *look) at(p place, mask uint32) (out []vmm.ShareChange, again uint32) {
	fs := l.fs
	n, err := fs.node(p.id)
	if err != nil {
		return nil, 0
	}
	defer fs.done(&n.descriptor)
	if p.name == "" {
		return fs.lookAtItself(n, mask)
	}
	own, isOwn := fs.recent.ofName(p.id, p.name)
	stx, err := statIn(n.fd, p.name)
	if err != nil {
		if mask&entryEvents != 0 && (!isOwn || own.made) {
			out = append(out, gone(p.id, p.name, mask&unix.IN_ISDIR != 0))
		}
		return out, 0
	}
	if mask&entryEvents != 0 {
		key, known := l.knows(p.id, p.name)
		removed := isOwn && !own.made // by the guest, who knows
		replaced := known && key != keyOf(stx) && !removed
		if !isOwn || removed || replaced {
			if replaced {
				// Who watches the file that was there must hear that it is gone.
				out = append(out, gone(p.id, p.name, key.kind == unix.S_IFDIR))
			}
			out = append(out, vmm.ShareChange{What: vmm.ShareAppeared, File: p.id, Name: p.name, Type: uint32(stx.Mode) & unix.S_IFMT})
		}
	}
	if mask&unix.IN_MODIFY == 0 && (mask&unix.IN_ATTRIB == 0 || len(out) > 0) {
		return out, 0
	}
	fs.mu.Lock()
	child := fs.byFile[keyOf(stx)]
	fs.mu.Unlock()
	var f ownFile
	if child != nil {
		f, _ = fs.recent.ofFile(child.id)
	}
	if isOwn && own.at.After(f.at) {
		f.at = own.at // who makes a file sets its attributes, too
	}
	return f.changed(out, p.id, p.name, mask, stx)
}

// knows returns which file the guest knows by a name.
func (l *look) knows(dir uint64, name string) (fileKey, bool) {
	if l.known == nil {
		l.known = map[entry]fileKey{}
		l.fs.mu.Lock()
		for _, n := range l.fs.nodes {
			if n.parent != nil {
				l.known[entry{n.parent.id, n.name}] = n.key
			}
		}
		l.fs.mu.Unlock()
	}
	key, ok := l.known[entry{dir, name}]
	return key, ok
}

// lookAtItself is look.at for a file that is watched itself, n.
func (fs *fileSystem) lookAtItself(n *node, mask uint32) (out []vmm.ShareChange, again uint32) {
	stx, err := stat(n.fd)
	if err != nil {
		return nil, 0
	}
	if stx.Nlink == 0 {
		fs.mu.Lock()
		parent, name := n.parent, n.name
		fs.mu.Unlock()
		if parent == nil {
			return nil, 0
		}
		if own, ok := fs.recent.ofName(parent.id, name); !ok || own.made {
			out = append(out, gone(parent.id, name, n.kind == unix.S_IFDIR))
		}
		return out, 0
	}
	f, _ := fs.recent.ofFile(n.id)
	return f.changed(nil, n.id, "", mask, stx)
}

// changed adds that a file was changed, unless nobody has changed it since the guest has. While
// the guest still does so it returns the events instead.
func (f ownFile) changed(out []vmm.ShareChange, id uint64, name string, mask uint32, stx *unix.Statx_t) (_ []vmm.ShareChange, again uint32) {
	switch {
	case f.running > 0:
		return out, mask & fileEvents
	case !f.at.IsZero() && !time.Unix(stx.Ctime.Sec, int64(stx.Ctime.Nsec)).After(f.at):
		return out, 0
	}
	return append(out, vmm.ShareChange{What: vmm.ShareChanged, File: id, Name: name, Attributes: mask&unix.IN_MODIFY == 0}), 0
}

func gone(dir uint64, name string, isDir bool) vmm.ShareChange {
	what := vmm.ShareFileGone
	if isDir {
		what = vmm.ShareDirGone
	}
	return vmm.ShareChange{What: what, File: dir, Name: name}
}

func statIn(dir int, name string) (*unix.Statx_t, error) {
	var stx unix.Statx_t
	err := again(func() error {
		return unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &stx)
	})
	return &stx, err
}
