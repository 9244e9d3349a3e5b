package ext4

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// resolve settles what can be known only when all entries are read: hard links
// to files that came later, whiteouts, opaque directories.
func (w *LayerWriter) resolve() error {
	if err := w.resolveLinks(); err != nil {
		return err
	}
	return w.resolveWhiteouts()
}

func (w *LayerWriter) resolveLinks() error {
	for i := range w.pending {
		l := &w.pending[i]
		if l.node.links == 0 {
			continue // replaced by a later entry
		}
		// The target may have become a link to yet another file, which is still
		// a placeholder.
		path := l.node.target
		target, steps := w.lookup(path), 0
		for target != nil && target.mode == 0 {
			if steps++; steps > len(w.pending) {
				return fmt.Errorf("layer entry %q: hard links that point at each other: %w", l.name, errdefs.ErrInvalidArgument)
			}
			path = target.target
			target = w.lookup(path)
		}
		switch {
		case target == nil:
			return fmt.Errorf("layer entry %q: its hard link's target %q is not in the layer: %w", l.name, path, errdefs.ErrInvalidArgument)
		case target.isDir():
			return fmt.Errorf("layer entry %q: hard link to the directory %q: %w", l.name, path, errdefs.ErrInvalidArgument)
		case target.links >= maxLinks:
			return tooManyLinks(path)
		}
		if at := l.parent.find(l.name); at >= 0 && l.parent.entries[at].node == l.node {
			l.parent.entries[at].node = target
			target.links++
		}
	}
	w.pending = nil
	return nil
}

// walkDirs calls f for each directory of the layer, parents first.
func (w *LayerWriter) walkDirs(f func(*inode) error) error {
	queue := []*inode{w.root}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		if err := f(n); err != nil {
			return err
		}
		for _, e := range n.dir.entries {
			if e.node != nil && e.node.isDir() {
				queue = append(queue, e.node)
			}
		}
	}
	return nil
}

// resolveWhiteouts turns the layer's whiteouts into overlayfs's form
// (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque
// directories"). A name that the layer also has wins over its whiteout,
// whichever came first; a directory that replaces a removed one is opaque, or
// the removed one's contents would show in it.
func (w *LayerWriter) resolveWhiteouts() error {
	return w.walkDirs(func(n *inode) error {
		d := n.dir
		slices.Sort(d.whiteouts)
		for _, name := range slices.Compact(d.whiteouts) {
			switch child := d.lookup(name); {
			case child == nil:
				d.put(name, &inode{mode: modeChar, links: 1})
			case child.isDir():
				child.dir.opaque = true
			}
		}
		d.whiteouts = nil
		if !d.opaque {
			return nil
		}
		attrs := []xattr{{xattrTrusted, "overlay.opaque", []byte("y")}}
		if s := n.xattrs; s != nil {
			attrs = append(append(attrs, s.inline...), s.block...)
		}
		set, err := w.intern(attrs)
		if err != nil {
			return fmt.Errorf("opaque directory: %w", err)
		}
		n.xattrs = set
		return nil
	})
}
