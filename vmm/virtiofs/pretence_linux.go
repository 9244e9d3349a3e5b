package virtiofs

import (
	"math/rand/v2"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
)

// The guest's kernel raises inotify events for what its own processes do, and the protocol has
// nothing by which a server could have it do so. So the agent does once more what the host has
// done already, in requests that carry a group of their own, and they are answered here as
// if it was done, though nothing is. What the guest's kernel knows of the file is right then.
//
// Whose group the requests carry is a number that was drawn for the share and that only
// the agent is told. A guest that finds it deceives nobody but itself.

// newMark draws the first of a share's groups; the others are the next ones.
func newMark() uint32 { return 1<<30 + rand.Uint32N(1<<29)&^3 }

// pretence returns what a request pretends to do, and whether it does.
func (fs *fileSystem) pretence(h *fuse.InHeader) (vmm.ShareEvent, bool) {
	what := h.Gid - fs.mark
	return vmm.ShareEvent(what), what < uint32(vmm.ShareEvents)
}

// pretends reports whether a request pretends to do one of these.
func (fs *fileSystem) pretends(h *fuse.InHeader, what ...vmm.ShareEvent) bool {
	is, ok := fs.pretence(h)
	return ok && slices.Contains(what, is)
}

// former gives the guest the file that was in a directory by the name: the one that it knows,
// else one of which nothing is known but that it was a directory or none.
func (fs *fileSystem) former(dir uint64, name string, isDir bool, out *fuse.EntryOut) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	parent := fs.nodes[dir]
	if parent == nil {
		return fuse.Status(unix.ESTALE)
	}
	kind := uint16(unix.S_IFREG)
	if isDir {
		kind = unix.S_IFDIR
	}
	// An index by names would cost every look-up, for what is rare.
	for _, n := range fs.nodes {
		if n.parent == parent && n.name == name && (n.kind == unix.S_IFDIR) == isDir {
			n.lookups++
			out.NodeId, out.Ino, kind = n.id, n.key.ino, n.kind
			break
		}
	}
	if out.NodeId == 0 {
		// No node: all that the guest does with it is to forget it.
		fs.last++
		out.NodeId, out.Ino = fs.last, fs.last
	}
	out.Mode, out.Nlink = uint32(kind)|0o600, 1
	return fuse.OK
}

// refresh answers a change of a file's times that did not happen. What the guest's kernel
// keeps of the file's content is checked at its next use: it finds another time then.
func (fs *fileSystem) refresh(id uint64, out *fuse.AttrOut) fuse.Status {
	return fs.with(id, func(n *node) error {
		if err := fs.answerAttr(n, out); err != nil {
			return err
		}
		out.SetTimeout(0)
		out.Mtimensec ^= 1
		return nil
	})
}
