package view

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/snapshotter/ext4"
	"github.com/applevm/applevm/snapshotter/union"
)

// A file's number is made of the numbers of its snapshot, its layer and in its layer's
// image, so that the links of one file have one, and those of different snapshots differ.
const (
	seqShift   = 40
	layerShift = 32
)

// node is a file of a snapshot.
type node struct {
	fs.Inode
	tree *tree
	path string // without a leading slash; empty is the root
}

var (
	_ fs.NodeGetattrer   = (*node)(nil)
	_ fs.NodeLookuper    = (*node)(nil)
	_ fs.NodeReaddirer   = (*node)(nil)
	_ fs.NodeOpener      = (*node)(nil)
	_ fs.NodeReader      = (*node)(nil)
	_ fs.NodeReadlinker  = (*node)(nil)
	_ fs.NodeGetxattrer  = (*node)(nil)
	_ fs.NodeListxattrer = (*node)(nil)
)

// find calls f with the file as it is now.
func (n *node) find(ctx context.Context, f func(o *opened, u union.Node) error) syscall.Errno {
	return errno(ctx, n.tree.do(func(o *opened) error {
		u, err := o.lookup(n.path)
		if err != nil {
			return err
		}
		return f(o, u)
	}))
}

// attr fills in the file's attributes.
func (n *node) attr(ctx context.Context, out *fuse.Attr) syscall.Errno {
	e := n.find(ctx, func(o *opened, u union.Node) error {
		return fill(out, n.tree, o, u)
	})
	if e == errBusy && n.path == "" {
		// Users can be looked up even while the container runs.
		*out = fuse.Attr{Mode: syscall.S_IFDIR | 0o755, Nlink: 1, Ino: n.tree.seq << seqShift}
		return 0
	}
	return e
}

func fill(out *fuse.Attr, t *tree, o *opened, u union.Node) error {
	st, ok := u.Info.Sys().(*ext4.Stat)
	if !ok {
		return fmt.Errorf("%s has no attributes", u.Info.Name())
	}
	*out = fuse.Attr{
		Ino: ino(t, o, u), Size: uint64(st.Size), Blocks: uint64(st.Blocks), Mode: st.Mode, Nlink: st.Nlink,
		Owner: fuse.Owner{Uid: st.UID, Gid: st.GID}, Rdev: uint32(unix.Mkdev(st.Major, st.Minor)), Blksize: 4096,
	}
	out.SetTimes(&st.Atime, &st.Mtime, &st.Ctime)
	return nil
}

func ino(t *tree, o *opened, u union.Node) uint64 {
	st, _ := u.Info.Sys().(*ext4.Stat)
	return t.seq<<seqShift | (o.layers[place(u).Layer]+1)<<layerShift | uint64(st.Ino)
}

// Getattr implements fs.NodeGetattrer.
func (n *node) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if n.path == "" {
		out.SetTimeout(0)
	}
	return n.attr(ctx, &out.Attr)
}

// Lookup implements fs.NodeLookuper.
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	child := &node{tree: n.tree, path: path.Join(n.path, name)}
	stable := fs.StableAttr{}
	e := child.find(ctx, func(o *opened, u union.Node) error {
		stable.Gen = o.gen
		return fill(&out.Attr, n.tree, o, u)
	})
	if e == errBusy && n.path == "" && name == "etc" {
		return n.lookupFacade(ctx, out)
	}
	if e != 0 {
		return nil, e
	}
	stable.Mode, stable.Ino = out.Mode&syscall.S_IFMT, out.Ino
	return n.NewInode(ctx, child, stable), 0
}

// Readdir implements fs.NodeReaddirer.
func (n *node) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	var list []fuse.DirEntry
	e := n.find(ctx, func(o *opened, u union.Node) error {
		if u.Dirs == nil {
			return syscall.ENOTDIR
		}
		names, err := union.Names(u.Dirs)
		if err != nil {
			return err
		}
		for _, name := range names {
			child, err := o.lookup(path.Join(n.path, name))
			if errors.Is(err, os.ErrNotExist) {
				continue // a whiteout
			}
			if err != nil {
				return err
			}
			st, _ := child.Info.Sys().(*ext4.Stat)
			list = append(list, fuse.DirEntry{Name: name, Mode: st.Mode & syscall.S_IFMT, Ino: ino(n.tree, o, child)})
		}
		return nil
	})
	if e != 0 {
		return nil, e
	}
	return fs.NewListDirStream(list), 0
}

// Open implements fs.NodeOpener. The kernel keeps nothing of the content.
func (n *node) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Read implements fs.NodeReader.
func (n *node) Read(ctx context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	read := 0
	e := n.find(ctx, func(_ *opened, u union.Node) error {
		f, err := u.File.Layer.Open(u.File.Path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		r, ok := f.(io.ReaderAt)
		if !ok {
			return syscall.EINVAL
		}
		if read, err = r.ReadAt(dest, off); errors.Is(err, io.EOF) {
			return nil
		}
		return err
	})
	return fuse.ReadResultData(dest[:read]), e
}

// Readlink implements fs.NodeReadlinker.
func (n *node) Readlink(ctx context.Context) (target []byte, e syscall.Errno) {
	e = n.find(ctx, func(_ *opened, u union.Node) error {
		t, err := u.File.Layer.ReadLink(u.File.Path)
		target = []byte(t)
		return err
	})
	return target, e
}

// xattrs returns the file's extended attributes, without overlayfs's own.
func (n *node) xattrs(ctx context.Context) (all map[string][]byte, e syscall.Errno) {
	e = n.find(ctx, func(_ *opened, u union.Node) (err error) {
		p := place(u)
		all, err = p.Layer.Xattrs(p.Path)
		return err
	})
	for name := range all {
		if strings.HasPrefix(name, "trusted.overlay.") {
			delete(all, name)
		}
	}
	return all, e
}

// Getxattr implements fs.NodeGetxattrer.
func (n *node) Getxattr(ctx context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	all, e := n.xattrs(ctx)
	if e != 0 {
		return 0, e
	}
	v, ok := all[name]
	if !ok {
		return 0, syscall.ENODATA
	}
	return give(dest, v)
}

// Listxattr implements fs.NodeListxattrer.
func (n *node) Listxattr(ctx context.Context, dest []byte) (uint32, syscall.Errno) {
	all, e := n.xattrs(ctx)
	if e != 0 {
		return 0, e
	}
	var names []string
	for name := range all {
		names = append(names, name+"\x00")
	}
	slices.Sort(names)
	return give(dest, []byte(strings.Join(names, "")))
}

func give(dest, v []byte) (uint32, syscall.Errno) {
	if len(v) > len(dest) {
		return uint32(len(v)), syscall.ERANGE
	}
	return uint32(copy(dest, v)), 0
}

// facadeDir is /etc of a snapshot whose container runs: the files that clients look up.
type facadeDir struct {
	fs.Inode
	dir string
}

var _ fs.NodeLookuper = (*facadeDir)(nil)

func (n *node) lookupFacade(ctx context.Context, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	snap, err := find(n.tree.root, n.tree.id)
	if err != nil {
		return nil, errno(ctx, err)
	}
	out.Attr = fuse.Attr{Mode: syscall.S_IFDIR | 0o755, Nlink: 1}
	out.SetEntryTimeout(0)
	return n.NewInode(ctx, &facadeDir{dir: filepath.Join(snap.facade, "etc")}, fs.StableAttr{Mode: syscall.S_IFDIR}), 0
}

// Lookup implements fs.NodeLookuper.
func (d *facadeDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if name != "passwd" && name != "group" {
		return nil, errBusy
	}
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		return nil, errno(ctx, err)
	}
	f := &fs.MemRegularFile{Data: bytes.Clone(b), Attr: fuse.Attr{Mode: 0o644, Nlink: 1}}
	out.Attr = fuse.Attr{Mode: syscall.S_IFREG | 0o644, Nlink: 1, Size: uint64(len(b))}
	out.SetEntryTimeout(0)
	return d.NewInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG}), 0
}

// Readdir implements fs.NodeReaddirer: it has more files than these.
func (d *facadeDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) { return nil, errBusy }
