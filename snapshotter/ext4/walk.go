package ext4

import (
	"fmt"
	"iter"
	"slices"

	"github.com/containerd/errdefs"
)

// Entry is one name in an image, with all that its inode says.
type Entry struct {
	// Path is relative to the image's root, which is ".".
	Path string
	Stat Stat
	// Target is where a symlink points.
	Target string
	// Xattrs are the extended attributes, as FS.Xattrs returns them.
	Xattrs map[string][]byte
}

// dirToRead is a directory that a walk has met and not read yet.
type dirToRead struct {
	path string
	node *node
}

// Walk yields every name in the image without following symlinks: the root,
// what it holds, sorted by name, and then one directory below it after the
// other in the same way, as ls -R does.
//
// Where something cannot be read the error comes with what is known of the
// entry, at least its path, and the walk goes on. Each directory is read once.
// What is kept meanwhile are the directories that are still to be read; so
// memory does not grow with the number of files.
func (f *FS) Walk() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		root, err := f.inode(inoRoot)
		if err != nil {
			yield(Entry{Path: "."}, pathError("lstat", ".", err))
			return
		}
		if !yield(f.entry(".", root)) {
			return
		}
		for todo := []dirToRead{{"", root}}; len(todo) > 0; {
			d := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			below, ok := f.walkDir(d, yield)
			if !ok {
				return
			}
			slices.Reverse(below)
			todo = append(todo, below...)
		}
	}
}

// walkDir yields what one directory holds and returns the directories in it. It
// returns false if yield did.
func (f *FS) walkDir(d dirToRead, yield func(Entry, error) bool) (below []dirToRead, ok bool) {
	list, err := f.readDir(d.node)
	if err != nil {
		path := d.path
		if path == "" {
			path = "."
		}
		return nil, yield(Entry{Path: path}, pathError("readdir", path, err))
	}
	for _, e := range list.entries {
		path := e.name
		if d.path != "" {
			path = d.path + "/" + e.name
		}
		n, err := f.child(d.node.ino, e)
		if err != nil {
			if !yield(Entry{Path: path}, pathError("lstat", path, err)) {
				return nil, false
			}
			continue
		}
		entry, err := f.entry(path, n)
		if n.mode&modeFmt == modeDir {
			// Nothing can be opened by a longer path, and paths of any length
			// would make memory grow with the square of a hostile image.
			if len(path) > maxPathLen {
				err = pathError("readdir", path, fmt.Errorf("a path of more than %d bytes: %w", maxPathLen, errdefs.ErrResourceExhausted))
			} else {
				below = append(below, dirToRead{path, n})
			}
		}
		if !yield(entry, err) {
			return nil, false
		}
	}
	return below, true
}

// entry describes the file at path. The error is that of a symlink's target or
// of extended attributes that cannot be read.
func (f *FS) entry(path string, n *node) (Entry, error) {
	e := Entry{Path: path, Stat: *newFileInfo(path, n).stat}
	if n.mode&modeFmt == modeSymlink {
		target, err := f.target(n)
		if err != nil {
			return e, pathError("readlink", path, err)
		}
		e.Target = target
	}
	xattrs, err := f.xattrs(n)
	if err != nil {
		return e, pathError("listxattr", path, err)
	}
	e.Xattrs = xattrs
	return e, nil
}
