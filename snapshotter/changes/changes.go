// Package changes makes a layer of what a container has changed: it reads file
// systems in which overlayfs has left its whiteouts and opaque directories, and
// writes them as the tar of an OCI layer (image-spec, layer.md, "Change types",
// "Whiteouts"). Nothing is mounted and nothing of the host is read.
package changes

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/applevm/applevm/snapshotter/ext4"
	"github.com/applevm/applevm/snapshotter/union"
)

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// Options say how a layer is written.
type Options struct {
	// Latest, if not zero, is the latest time that a file may have: later
	// modification times become this one (SOURCE_DATE_EPOCH).
	Latest time.Time
	// MaxBytes bounds the contents of all files as the tar has them; 0 is the bound
	// of a layer that is unpacked. A larger one is refused before it is read.
	MaxBytes int64
	// Sparse leaves the holes of files out of the tar (package sparsetar). It is not
	// for layers of images, in which sparse files should not be used (image-spec,
	// layer.md, "File Types"): there a hole is written as zeros.
	Sparse bool
}

// Write writes to w, as a tar with its end marker, how the union of upper
// differs from that of lower, over which it lay. Both list root directories, the
// highest first; lower may be empty. Entries come in the order of their names, a
// directory before what is in it, so that equal changes give equal bytes.
//
// Sockets have no form in a tar and are left out, as they are from any image. It
// returns errdefs.ErrResourceExhausted for more than MaxBytes.
func Write(ctx context.Context, w io.Writer, upper, lower []union.Place, opts Options) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = ext4.DefaultMaxBytes
	}
	c := &writer{ctx: ctx, out: w, tar: tar.NewWriter(w), opts: opts, links: map[inode]string{}, buf: make([]byte, copySize)}
	if err := c.root(upper, lower); err != nil {
		return err
	}
	return c.tar.Close()
}

// copySize is how much of a file is read at once, in bytes.
const copySize = 1 << 20

// writer is the state of one Write.
type writer struct {
	ctx  context.Context
	out  io.Writer
	tar  *tar.Writer // to out
	opts Options
	// links are the paths at which files with several names came first.
	links map[inode]string
	buf   []byte
	total int64 // bytes of contents
}

// inode identifies a file of the layers that are read.
type inode struct {
	layer union.Layer
	ino   uint32
}

// root writes the root directory, if it is not as it was, and all below it.
func (c *writer) root(upper, lower []union.Place) error {
	if len(upper) == 0 {
		return nil
	}
	for i, p := range upper {
		opaque, err := p.Opaque()
		if err != nil {
			return err
		}
		if opaque {
			upper = upper[:i+1]
			if len(lower) > 0 {
				if err := c.marker(opaqueName); err != nil {
					return err
				}
				lower = nil
			}
			break
		}
	}
	changed := len(lower) == 0
	if !changed {
		same, err := sameMeta(upper[0], lower[0])
		if err != nil {
			return err
		}
		changed = !same
	}
	if changed {
		if err := c.entry("./", upper[0]); err != nil {
			return err
		}
	}
	return c.dir("", upper, lower)
}

// dir writes what is in a directory of the union of upper; path is empty for the
// root and ends with a slash for others.
func (c *writer) dir(path string, upper, lower []union.Place) error {
	names, err := union.Names(upper)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.name(path, name, upper, lower); err != nil {
			return err
		}
	}
	return nil
}

// name writes one name of a directory.
func (c *writer) name(path, name string, upper, lower []union.Place) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if strings.HasPrefix(name, whiteoutPrefix) {
		return fmt.Errorf("%q cannot be in a layer, where its name means that a file is removed: remove or rename it", path+name)
	}
	found, err := find(upper, name)
	if err != nil {
		return err
	}
	below, err := union.Lookup(lower, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	existed := err == nil
	switch {
	case found.whiteout:
		if !existed {
			return nil // made and removed within upper
		}
		return c.marker(path + whiteoutPrefix + name)
	case found.dirs == nil:
		return c.file(path+name, found.file)
	}
	path += name + "/"
	if err := c.entry(path, found.dirs[0]); err != nil {
		return err
	}
	if found.hides {
		// overlayfs marks each new directory as opaque; to a layer it only
		// matters where there is something to hide.
		if below.Dirs != nil {
			if err := c.marker(path + opaqueName); err != nil {
				return err
			}
		}
		below.Dirs = nil
	}
	return c.dir(path, found.dirs, below.Dirs)
}

// found is what the union of the upper file systems has at a name.
type found struct {
	whiteout bool
	file     union.Place   // of what is no directory
	dirs     []union.Place // of a directory, the highest first
	hides    bool          // the directory hides one below
}

// find is union.Lookup for file systems that lie on others: it tells a removed
// name from one that never was, and whether a directory is merged with what is
// below.
func find(dirs []union.Place, name string) (found, error) {
	var f found
	for _, d := range dirs {
		p := d.Child(name)
		info, err := p.Lstat()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return f, err
		}
		if !info.IsDir() {
			switch {
			case f.dirs != nil:
				f.hides = true
			case union.IsWhiteout(info):
				f.whiteout = true
			default:
				f.file = p
			}
			return f, nil
		}
		f.dirs = append(f.dirs, p)
		opaque, err := p.Opaque()
		if err != nil {
			return f, err
		}
		if opaque {
			f.hides = true
			return f, nil
		}
	}
	return f, nil
}

// marker writes a whiteout or the mark of an opaque directory.
func (c *writer) marker(path string) error {
	return c.header(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o600, ModTime: time.Unix(0, 0)})
}

func (c *writer) header(h *tar.Header) error {
	// PAX has a form for every name, size, owner and time.
	h.Format = tar.FormatPAX
	if err := c.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%q does not fit into a layer: %w", h.Name, err)
	}
	return nil
}
