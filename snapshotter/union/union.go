// Package union reads a stack of file systems as overlayfs would show it, without
// mounting anything (Documentation/filesystems/overlayfs.rst in the kernel's
// source: "whiteouts and opaque directories", "merged directories").
package union

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/applevm/applevm/snapshotter/ext4"
)

// maxLinks is how many symbolic links one name may lead through, as in the
// kernel's path_resolution(7).
const maxLinks = 40

// OpaqueXattr, with the value "y", on a directory hides what the layers below
// have in it (overlayfs).
const OpaqueXattr = "trusted.overlay.opaque"

// Layer is a layer's file system: symbolic links are not followed, whiteouts
// are character devices 0:0, and FileInfo.Sys returns *ext4.Stat.
type Layer interface {
	fs.ReadLinkFS
	// Xattrs returns the extended attributes of a file, by full name.
	Xattrs(name string) (map[string][]byte, error)
}

// Merged is the union of layers as overlayfs shows it. The zero value is an
// empty file system. The layers are data from outside: names in them never
// lead to anything but the layers.
type Merged struct {
	root []Place // the roots that are merged, the highest layer's first
}

// Place is a file or directory of one layer.
type Place struct {
	Layer Layer
	Path  string
}

// Under puts a layer under those that were put before. Its tree is in the
// directory root of its file system, which is taken for empty if it does not
// exist. Under reports whether the layer hides all layers below it, which then
// are not to be put.
func (m *Merged) Under(layer Layer, root string) (opaque bool, err error) {
	d := Place{layer, root}
	info, err := layer.Lstat(root)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", root)
	}
	if err == nil {
		opaque, err = d.Opaque()
	}
	if err != nil {
		return false, err
	}
	m.root = append(m.root, d)
	return opaque, nil
}

// Node is a file of the union.
type Node struct {
	Info fs.FileInfo
	// File is the layer's file that is seen, if it is not a directory.
	File Place
	// Dirs are the directories that are merged, the highest first, if it is one.
	Dirs []Place
}

// Open opens the file that name, a slash-separated path, leads to in the union,
// through symbolic links too. Absolute links and ".." stay within the union.
// The error is fs.ErrNotExist, wrapped, if there is no such file.
func (m *Merged) Open(ctx context.Context, name string) (fs.File, error) {
	n, err := m.resolve(ctx, name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if n.Dirs != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrIsDir}
	}
	if !n.Info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	return n.File.Layer.Open(n.File.Path)
}

// Errors of Open, wrapped in an fs.PathError.
var (
	ErrIsDir      = errors.New("is a directory")
	ErrNotRegular = errors.New("not a regular file")
	ErrTooMany    = errors.New("too many symbolic links")
)

// resolve finds what name leads to.
func (m *Merged) resolve(ctx context.Context, name string) (Node, error) {
	var (
		stack = []Node{{Dirs: m.root}} // the directories walked through, the root first
		todo  = strings.Split(name, "/")
		links int
	)
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return Node{}, err
		}
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		child, err := Lookup(stack[len(stack)-1].Dirs, part)
		if err != nil {
			return Node{}, err
		}
		switch {
		case child.Dirs != nil:
			stack = append(stack, child)
		case child.Info.Mode()&fs.ModeSymlink != 0:
			if links++; links > maxLinks {
				return Node{}, ErrTooMany
			}
			target, err := child.File.Layer.ReadLink(child.File.Path)
			if err != nil {
				return Node{}, err
			}
			if path.IsAbs(target) {
				stack = stack[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
		case len(todo) > 0:
			return Node{}, fs.ErrNotExist // a file where a directory should be
		default:
			return child, nil
		}
	}
	return stack[len(stack)-1], nil
}

// Names returns the names in merged directories, sorted, each once. Whiteouts are
// among them.
func Names(dirs []Place) ([]string, error) {
	var names []string
	for _, d := range dirs {
		list, err := fs.ReadDir(d.Layer, d.Path)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			names = append(names, e.Name())
		}
	}
	if len(dirs) > 1 {
		slices.Sort(names)
		names = slices.Compact(names)
	}
	return names, nil
}

// Lookup finds one name in a merged directory. It returns fs.ErrNotExist if the
// union has no such name.
func Lookup(dirs []Place, name string) (Node, error) {
	var found Node
	for _, d := range dirs {
		c := d.Child(name)
		info, err := c.Lstat()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Node{}, err
		}
		if !info.IsDir() {
			// A file ends the search: it is what is seen, unless a directory
			// above it is.
			if found.Dirs == nil && !IsWhiteout(info) {
				return Node{Info: info, File: c}, nil
			}
			break
		}
		if found.Dirs == nil {
			found.Info = info
		}
		found.Dirs = append(found.Dirs, c)
		opaque, err := c.Opaque()
		if err != nil {
			return Node{}, err
		}
		if opaque {
			break
		}
	}
	if found.Dirs == nil {
		return Node{}, fs.ErrNotExist
	}
	return found, nil
}

// IsWhiteout reports whether a file of a layer says that its name is removed.
func IsWhiteout(info fs.FileInfo) bool {
	st, ok := info.Sys().(*ext4.Stat)
	return ok && info.Mode()&fs.ModeCharDevice != 0 && st.Major == 0 && st.Minor == 0
}

// Child returns the place of a name in the directory p.
func (p Place) Child(name string) Place { return Place{p.Layer, path.Join(p.Path, name)} }

// Lstat describes what is at p, without following a symbolic link.
func (p Place) Lstat() (fs.FileInfo, error) { return p.Layer.Lstat(p.Path) }

// Opaque reports whether the directory p hides what the layers below have in it.
func (p Place) Opaque() (bool, error) {
	xattrs, err := p.Layer.Xattrs(p.Path)
	if err != nil {
		return false, err
	}
	return string(xattrs[OpaqueXattr]) == "y", nil
}
