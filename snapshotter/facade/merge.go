// Package facade makes the small host directory that a snapshot's mount points
// at. Clients of containerd open that directory to look up users and groups of
// an image; everything else in the image only the guest reads. So the facade
// holds etc/passwd and etc/group, as the stack of the snapshot's layers shows
// them, and nothing else.
package facade

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/applevm/applevm/snapshotter/ext4"
)

// maxLinks is how many symbolic links one name may lead through, as in the
// kernel's path_resolution(7).
const maxLinks = 40

// opaqueXattr, with the value "y", on a directory hides what the layers below
// have in it (overlayfs).
const opaqueXattr = "trusted.overlay.opaque"

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
	root []dir // the roots that are merged, the highest layer's first
}

// dir is a directory of one layer.
type dir struct {
	layer Layer
	path  string
}

// Under puts a layer under those that were put before. Its tree is in the
// directory root of its file system, which is taken for empty if it does not
// exist. Under reports whether the layer hides all layers below it, which then
// are not to be put.
func (m *Merged) Under(layer Layer, root string) (opaque bool, err error) {
	d := dir{layer, root}
	info, err := layer.Lstat(root)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", root)
	}
	if err == nil {
		opaque, err = d.opaque()
	}
	if err != nil {
		return false, err
	}
	m.root = append(m.root, d)
	return opaque, nil
}

// node is a file of the union.
type node struct {
	info fs.FileInfo
	// file is the layer's file that is seen, if it is not a directory.
	file dir
	// dirs are the directories that are merged, the highest first, if it is one.
	dirs []dir
}

// Open opens the file that name, a slash-separated path, leads to in the union,
// through symbolic links too. Absolute links and ".." stay within the union.
// The error is fs.ErrNotExist, wrapped, if there is no such file.
func (m *Merged) Open(ctx context.Context, name string) (fs.File, error) {
	n, err := m.resolve(ctx, name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if n.dirs != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errIsDir}
	}
	if !n.info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errNotRegular}
	}
	return n.file.layer.Open(n.file.path)
}

var (
	errIsDir      = errors.New("is a directory")
	errNotRegular = errors.New("not a regular file")
	errTooMany    = errors.New("too many symbolic links")
)

// resolve finds what name leads to.
func (m *Merged) resolve(ctx context.Context, name string) (node, error) {
	var (
		stack = []node{{dirs: m.root}} // the directories walked through, the root first
		todo  = strings.Split(name, "/")
		links int
	)
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return node{}, err
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
		child, err := lookup(stack[len(stack)-1].dirs, part)
		if err != nil {
			return node{}, err
		}
		switch {
		case child.dirs != nil:
			stack = append(stack, child)
		case child.info.Mode()&fs.ModeSymlink != 0:
			if links++; links > maxLinks {
				return node{}, errTooMany
			}
			target, err := child.file.layer.ReadLink(child.file.path)
			if err != nil {
				return node{}, err
			}
			if path.IsAbs(target) {
				stack = stack[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
		case len(todo) > 0:
			return node{}, fs.ErrNotExist // a file where a directory should be
		default:
			return child, nil
		}
	}
	return stack[len(stack)-1], nil
}

// lookup finds one name in a merged directory.
func lookup(dirs []dir, name string) (node, error) {
	var found node
	for _, d := range dirs {
		c := dir{d.layer, path.Join(d.path, name)}
		info, err := d.layer.Lstat(c.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return node{}, err
		}
		if !info.IsDir() {
			// A file ends the search: it is what is seen, unless a directory
			// above it is.
			if found.dirs == nil && !isWhiteout(info) {
				return node{info: info, file: c}, nil
			}
			break
		}
		if found.dirs == nil {
			found.info = info
		}
		found.dirs = append(found.dirs, c)
		opaque, err := c.opaque()
		if err != nil {
			return node{}, err
		}
		if opaque {
			break
		}
	}
	if found.dirs == nil {
		return node{}, fs.ErrNotExist
	}
	return found, nil
}

func isWhiteout(info fs.FileInfo) bool {
	st, ok := info.Sys().(*ext4.Stat)
	return ok && info.Mode()&fs.ModeCharDevice != 0 && st.Major == 0 && st.Minor == 0
}

func (d dir) opaque() (bool, error) {
	xattrs, err := d.layer.Xattrs(d.path)
	if err != nil {
		return false, err
	}
	return string(xattrs[opaqueXattr]) == "y", nil
}
