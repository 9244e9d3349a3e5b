package changes

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/snapshotter/ext4"
	"github.com/applevm/applevm/snapshotter/internal/ctxio"
	"github.com/applevm/applevm/snapshotter/union"
)

// paxXattr begins the PAX records that hold extended attributes.
const paxXattr = "SCHILY.xattr."

// file writes what is no directory, with its contents or, if it came before
// under another name, as a hard link.
func (c *writer) file(path string, p union.Place) error {
	info, err := p.Lstat()
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	st, err := stat(info)
	if err != nil {
		return err
	}
	if st.Nlink > 1 {
		id := inode{p.Layer, st.Ino}
		if first, ok := c.links[id]; ok {
			// With owner, mode and time: who unpacks it may set them.
			h := c.meta(path, st)
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return c.header(h)
		}
		c.links[id] = path
	}
	return c.entry(path, p)
}

// entry writes a file or directory with its contents.
func (c *writer) entry(path string, p union.Place) error {
	info, err := p.Lstat()
	if err != nil {
		return err
	}
	st, err := stat(info)
	if err != nil {
		return err
	}
	h := c.meta(path, st)
	switch t := info.Mode().Type(); t {
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case fs.ModeDir:
		h.Typeflag = tar.TypeDir
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = p.Layer.ReadLink(p.Path); err != nil {
			return err
		}
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		h.Typeflag = tar.TypeBlock
		if t&fs.ModeCharDevice != 0 {
			h.Typeflag = tar.TypeChar
		}
		h.Devmajor, h.Devminor = int64(st.Major), int64(st.Minor)
	default:
		return fmt.Errorf("%q is of no type that a layer can hold (%v)", path, t)
	}
	xattrs, err := layerXattrs(p)
	if err != nil {
		return err
	}
	for name, value := range xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+name] = string(value)
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return c.header(h)
	}
	if c.opts.Sparse {
		if done, err := c.sparse(h, p); done || err != nil {
			return err
		}
	}
	if err := c.charge(path, h.Size); err != nil {
		return err
	}
	if err := c.header(h); err != nil {
		return err
	}
	return c.contents(path, p)
}

// charge counts what a file will have in the tar, before it is read.
func (c *writer) charge(path string, n int64) error {
	if n > c.opts.MaxBytes-c.total {
		return fmt.Errorf("with %q the layer has more than %d bytes, holes of sparse files included: remove or shrink the file: %w",
			path, c.opts.MaxBytes, errdefs.ErrResourceExhausted)
	}
	c.total += n
	return nil
}

// meta is the part of a header that all files have.
func (c *writer) meta(path string, st *ext4.Stat) *tar.Header {
	h := &tar.Header{Name: path, Mode: int64(st.Mode & 0o7777), Uid: int(st.UID), Gid: int(st.GID), ModTime: st.Mtime}
	if !c.opts.Latest.IsZero() && h.ModTime.After(c.opts.Latest) {
		h.ModTime = c.opts.Latest
	}
	return h
}

func (c *writer) contents(path string, p union.Place) error {
	f, err := p.Layer.Open(p.Path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // opened to read
	// In pieces of a size that we choose: the context is looked at in between.
	_, err = io.CopyBuffer(struct{ io.Writer }{c.tar}, ctxio.Reader(c.ctx, f), c.buf)
	if err != nil {
		return fmt.Errorf("read %q: %w", path, err)
	}
	return nil
}

// layerXattrs returns the attributes of a file that belong into a layer: not
// those by which overlayfs keeps its books. One with a further "overlay." in its
// name is a nested overlayfs's, whose own prefix the kernel has doubled (Linux
// 6.7, "trusted.overlay.overlay.*"): it is the container's data.
func layerXattrs(p union.Place) (map[string][]byte, error) {
	all, err := p.Layer.Xattrs(p.Path)
	if err != nil {
		return nil, err
	}
	const own = "trusted.overlay."
	out := map[string][]byte{}
	for name, value := range all {
		if rest, ok := strings.CutPrefix(name, own); ok {
			if nested, ok := strings.CutPrefix(rest, "overlay."); ok {
				out[own+nested] = value
			}
			continue
		}
		out[name] = value
	}
	return out, nil
}

// sameMeta reports whether two directories look the same, but for their times
// and contents.
func sameMeta(a, b union.Place) (bool, error) {
	var sts [2]*ext4.Stat
	var xattrs [2]map[string][]byte
	for i, p := range []union.Place{a, b} {
		info, err := p.Lstat()
		if err != nil {
			return false, err
		}
		if sts[i], err = stat(info); err != nil {
			return false, err
		}
		if xattrs[i], err = layerXattrs(p); err != nil {
			return false, err
		}
	}
	return sts[0].Mode == sts[1].Mode && sts[0].UID == sts[1].UID && sts[0].GID == sts[1].GID &&
		maps.EqualFunc(xattrs[0], xattrs[1], bytes.Equal), nil
}

func stat(info fs.FileInfo) (*ext4.Stat, error) {
	st, ok := info.Sys().(*ext4.Stat)
	if !ok {
		return nil, fmt.Errorf("%s: a file of no ext4 image", info.Name())
	}
	return st, nil
}
