package procroot

import (
	"context"
	"hash/maphash"
	"path"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// node is a file of the container. It knows nothing of it: its path says which it is.
type node struct {
	fs.Inode
	root *Root
}

var (
	_ fs.NodeLookuper   = (*node)(nil)
	_ fs.NodeGetattrer  = (*node)(nil)
	_ fs.NodeSetattrer  = (*node)(nil)
	_ fs.NodeReadlinker = (*node)(nil)
	_ fs.NodeStatfser   = (*node)(nil)
	_ fs.NodeMkdirer    = (*node)(nil)
	_ fs.NodeMknoder    = (*node)(nil)
	_ fs.NodeSymlinker  = (*node)(nil)
	_ fs.NodeLinker     = (*node)(nil)
	_ fs.NodeUnlinker   = (*node)(nil)
	_ fs.NodeRmdirer    = (*node)(nil)
	_ fs.NodeRenamer    = (*node)(nil)
)

func (n *node) path() string { return n.Path(nil) }

// Getattr implements fs.NodeGetattrer.
func (n *node) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if n.IsRoot() && n.root.call.Load() == nil {
		out.Mode, out.Nlink = unix.S_IFDIR|0o555, 2
		return 0
	}
	resp, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{Operation: &guestv1.FileRequest_Stat{Stat: &guestv1.FileStat{}}})
	if errno != 0 {
		return errno
	}
	// What was another kind of file before is another file.
	if resp.GetAttr().GetMode()&unix.S_IFMT != n.Mode() {
		return syscall.ESTALE
	}
	fill(resp.GetAttr(), &out.Attr)
	return 0
}

// Access lets root do all: the guest's files are not the host's.
func (n *node) Access(context.Context, uint32) syscall.Errno { return 0 }

// Lookup implements fs.NodeLookuper.
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.child(ctx, name, &guestv1.FileRequest{Operation: &guestv1.FileRequest_Stat{Stat: &guestv1.FileStat{}}}, out)
}

// child sends a request that answers with the attributes of name in the directory n.
func (n *node) child(ctx context.Context, name string, req *guestv1.FileRequest, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	p := path.Join(n.path(), name)
	resp, errno := n.root.do(ctx, p, req)
	if errno != 0 {
		return nil, errno
	}
	a := resp.GetAttr()
	stable, ok := identity(p, a)
	if !ok {
		return nil, syscall.EIO
	}
	fill(a, &out.Attr)
	return n.NewInode(ctx, &node{root: n.root}, stable), 0
}

var seed = maphash.MakeSeed()

// identity tells files apart. Names of one file have one identity, as tar needs for
// hard links; but a directory that is mounted twice is two here, for Linux wants
// directories to have one name.
func identity(p string, a *guestv1.FileAttr) (fs.StableAttr, bool) {
	switch mode := a.GetMode() & unix.S_IFMT; mode {
	case unix.S_IFDIR:
		return fs.StableAttr{Mode: mode, Ino: maphash.String(seed, p) | 1<<63, Gen: 1}, true
	case unix.S_IFREG, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		const odd = 0x9e3779b97f4a7c15 // spreads the device over all bits
		ino := (a.GetIno() + a.GetDev()*odd) &^ (1 << 63)
		if ino < 2 { // none, and the root
			ino |= 1 << 62
		}
		return fs.StableAttr{Mode: mode, Ino: ino, Gen: a.GetDev() + 2}, true
	}
	return fs.StableAttr{}, false
}

func fill(a *guestv1.FileAttr, out *fuse.Attr) {
	out.Mode, out.Nlink, out.Uid, out.Gid = a.GetMode(), a.GetLinks(), a.GetUid(), a.GetGid()
	out.Size, out.Blocks, out.Rdev = a.GetSize(), a.GetBlocks(), uint32(a.GetRdev())
	at, mt, ct := unix.NsecToTimespec(a.GetAtimeNs()), unix.NsecToTimespec(a.GetMtimeNs()), unix.NsecToTimespec(a.GetCtimeNs())
	out.Atime, out.Atimensec = uint64(at.Sec), uint32(at.Nsec)
	out.Mtime, out.Mtimensec = uint64(mt.Sec), uint32(mt.Nsec)
	out.Ctime, out.Ctimensec = uint64(ct.Sec), uint32(ct.Nsec)
}

// Setattr implements fs.NodeSetattrer.
func (n *node) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	c := &guestv1.FileChange{}
	if v, ok := in.GetMode(); ok {
		c.Mode = &v
	}
	if v, ok := in.GetUID(); ok {
		c.Uid = &v
	}
	if v, ok := in.GetGID(); ok {
		c.Gid = &v
	}
	if v, ok := in.GetSize(); ok {
		c.Size = &v
	}
	if v, ok := in.GetATime(); ok {
		ns := v.UnixNano()
		c.AtimeNs = &ns
	}
	if v, ok := in.GetMTime(); ok {
		ns := v.UnixNano()
		c.MtimeNs = &ns
	}
	resp, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{Operation: &guestv1.FileRequest_Change{Change: c}})
	if errno == 0 {
		fill(resp.GetAttr(), &out.Attr)
	}
	return errno
}

// Readlink implements fs.NodeReadlinker.
func (n *node) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	resp, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{Operation: &guestv1.FileRequest_ReadLink{ReadLink: &guestv1.FileReadLink{}}})
	if errno != 0 {
		return nil, errno
	}
	if len(resp.GetData()) >= unix.PathMax {
		return nil, syscall.EIO
	}
	return resp.GetData(), 0
}

// Statfs implements fs.NodeStatfser.
func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	resp, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{Operation: &guestv1.FileRequest_StatFs{StatFs: &guestv1.FileStatFS{}}})
	if errno != 0 {
		return errno
	}
	s := resp.GetFileSystem()
	out.Blocks, out.Bfree, out.Bavail, out.Files, out.Ffree = s.GetBlocks(), s.GetFree(), s.GetAvailable(), s.GetFiles(), s.GetFreeFiles()
	out.Bsize, out.Frsize, out.NameLen = s.GetBlockSize(), s.GetBlockSize(), s.GetNameLength()
	return 0
}

func makeRequest(m *guestv1.FileMake) *guestv1.FileRequest {
	return &guestv1.FileRequest{Operation: &guestv1.FileRequest_Make{Make: m}}
}

// Mkdir implements fs.NodeMkdirer.
func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.child(ctx, name, makeRequest(&guestv1.FileMake{Mode: unix.S_IFDIR | mode&0o7777}), out)
}

// Mknod implements fs.NodeMknoder.
func (n *node) Mknod(ctx context.Context, name string, mode, dev uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.child(ctx, name, makeRequest(&guestv1.FileMake{Mode: mode, Rdev: uint64(dev)}), out)
}

// Symlink implements fs.NodeSymlinker.
func (n *node) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.child(ctx, name, makeRequest(&guestv1.FileMake{Mode: unix.S_IFLNK | 0o777, Target: []byte(target)}), out)
}

// Link implements fs.NodeLinker.
func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.child(ctx, name, makeRequest(&guestv1.FileMake{LinkTo: []byte(target.EmbeddedInode().Path(nil))}), out)
}

// Unlink implements fs.NodeUnlinker.
func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.remove(ctx, name, false)
}

// Rmdir implements fs.NodeRmdirer.
func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.remove(ctx, name, true)
}

func (n *node) remove(ctx context.Context, name string, dir bool) syscall.Errno {
	_, errno := n.root.do(ctx, path.Join(n.path(), name), &guestv1.FileRequest{
		Operation: &guestv1.FileRequest_Remove{Remove: &guestv1.FileRemove{Directory: dir}}})
	return errno
}

// Rename implements fs.NodeRenamer.
func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	_, errno := n.root.do(ctx, path.Join(n.path(), name), &guestv1.FileRequest{Operation: &guestv1.FileRequest_Rename{
		Rename: &guestv1.FileRename{To: []byte(path.Join(to.EmbeddedInode().Path(nil), newName)), Flags: flags}}})
	return errno
}
