package virtiofs

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
)

// Lookup implements fuse.RawFileSystem.
func (fs *fileSystem) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	switch what, ok := fs.pretence(h); {
	case ok && what == vmm.ShareAppeared:
		return fuse.ENOENT // as before it did
	case ok && (what == vmm.ShareFileGone || what == vmm.ShareDirGone):
		return fs.former(h.NodeId, name, what == vmm.ShareDirGone, out)
	}
	s := fs.inDir(h.NodeId, name, func(dir *node) error { return fs.enter(dir, name, out) })
	if s == fuse.ENOENT {
		// Node 0: the guest may remember that there is no such file.
		out.SetEntryTimeout(valid)
		return fuse.OK
	}
	return s
}

// GetAttr implements fuse.RawFileSystem.
func (fs *fileSystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return fs.with(in.NodeId, func(n *node) error { return fs.answerAttr(n, out) })
}

func (fs *fileSystem) answerAttr(n *node, out *fuse.AttrOut) error {
	stx, err := stat(n.fd)
	if err != nil {
		return err
	}
	fs.owners.show(n.fd, stx)
	out.SetTimeout(valid)
	fs.attr(stx, &out.Attr)
	return nil
}

func (fs *fileSystem) attr(stx *unix.Statx_t, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: fs.ino(device{stx.Dev_major, stx.Dev_minor}, stx.Ino), Size: stx.Size, Blocks: stx.Blocks,
		Atime: uint64(stx.Atime.Sec), Atimensec: stx.Atime.Nsec,
		Mtime: uint64(stx.Mtime.Sec), Mtimensec: stx.Mtime.Nsec,
		Ctime: uint64(stx.Ctime.Sec), Ctimensec: stx.Ctime.Nsec,
		Mode: uint32(stx.Mode), Nlink: stx.Nlink, Blksize: stx.Blksize,
		Owner: fuse.Owner{Uid: stx.Uid, Gid: stx.Gid},
		Rdev:  uint32(unix.Mkdev(stx.Rdev_major, stx.Rdev_minor)), // new_encode_dev of include/linux/kdev_t.h
	}
}

// inoBits are the low bits of the inode numbers of file systems that are mounted
// below the share's. Above is the file system's own number: the guest sees one file
// system, in which a number means one file.
const inoBits = 52

func (fs *fileSystem) ino(d device, ino uint64) uint64 {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, ok := fs.devices[d]
	if !ok && len(fs.devices) < maxDevices {
		n = uint64(len(fs.devices))
		fs.devices[d] = n
	}
	if n == 0 {
		return ino
	}
	return ino ^ n<<inoBits
}

// SetAttr implements fuse.RawFileSystem.
func (fs *fileSystem) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if fs.pretends(&in.InHeader, vmm.ShareChanged) {
		return fs.refresh(in.NodeId, out)
	}
	if fs.readOnly {
		return fuse.EROFS
	}
	defer fs.recent.file(in.NodeId)()
	return fs.with(in.NodeId, func(n *node) error {
		// The order matters: a new owner takes set-ID bits away, a new size sets
		// the time.
		if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
			uid, gid := -1, -1
			if in.Valid&fuse.FATTR_UID != 0 {
				uid = int(in.Uid)
			}
			if in.Valid&fuse.FATTR_GID != 0 {
				gid = int(in.Gid)
			}
			if err := fs.chown(n.fd, uid, gid); err != nil {
				return err
			}
		}
		if in.Valid&fuse.FATTR_SIZE != 0 {
			if err := fs.truncate(n, in); err != nil {
				return err
			}
		}
		if in.Valid&fuse.FATTR_MODE != 0 {
			if err := fs.chmod(n.fd, in.Mode&0o7777); err != nil {
				return err
			}
		}
		if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
			if err := setTimes(n.fd, in); err != nil {
				return err
			}
		}
		return fs.answerAttr(n, out)
	})
}

func (fs *fileSystem) truncate(n *node, in *fuse.SetAttrIn) error {
	if in.Size > math.MaxInt64 {
		return unix.EINVAL
	}
	if in.Valid&fuse.FATTR_FH != 0 {
		h, err := fs.handle(in.Fh)
		if err != nil {
			return err
		}
		defer fs.done(&h.descriptor)
		return again(func() error { return unix.Ftruncate(h.fd, int64(in.Size)) })
	}
	fd, err := reopen(n, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return again(func() error { return unix.Ftruncate(fd, int64(in.Size)) })
}

func (fs *fileSystem) chown(fd, uid, gid int) error {
	if fs.owners != nil {
		return fs.owners.set(fd, uid, gid, -1)
	}
	return chown(fd, uid, gid)
}

func (fs *fileSystem) chmod(fd int, mode uint32) error {
	if fs.owners != nil {
		return fs.owners.set(fd, -1, -1, int(mode))
	}
	return chmod(fd, mode)
}

func chown(fd, uid, gid int) error {
	return again(func() error { return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH) })
}

// chmod fails for a symbolic link, which has no mode.
func chmod(fd int, mode uint32) error {
	return again(func() error { return unix.Chmod(procPath(fd), mode) })
}

func setTimes(fd int, in *fuse.SetAttrIn) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	set := func(t *unix.Timespec, sec uint64, nsec, given, now uint32) error {
		switch {
		case in.Valid&given == 0:
		case in.Valid&now != 0:
			t.Nsec = unix.UTIME_NOW
		case nsec >= 1e9: // the special values are the guest's to spell as above
			return unix.EINVAL
		default:
			t.Sec, t.Nsec = int64(sec), int64(nsec)
		}
		return nil
	}
	if err := set(&ts[0], in.Atime, in.Atimensec, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW); err != nil {
		return err
	}
	if err := set(&ts[1], in.Mtime, in.Mtimensec, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW); err != nil {
		return err
	}
	return again(func() error { return unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH) })
}

// Readlink implements fuse.RawFileSystem.
func (fs *fileSystem) Readlink(_ <-chan struct{}, h *fuse.InHeader) (target []byte, s fuse.Status) {
	s = fs.with(h.NodeId, func(n *node) error {
		if n.kind != unix.S_IFLNK {
			return unix.EINVAL
		}
		target = make([]byte, unix.PathMax)
		size, err := ignoringEINTR(func() (int, error) { return unix.Readlinkat(n.fd, "", target) })
		target = target[:max(0, size)]
		return err
	})
	if s != fuse.OK {
		return nil, s
	}
	return target, s
}

// StatFs implements fuse.RawFileSystem.
func (fs *fileSystem) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	return fs.with(h.NodeId, func(n *node) error {
		var st unix.Statfs_t
		if err := again(func() error { return unix.Fstatfs(n.fd, &st) }); err != nil {
			return err
		}
		*out = fuse.StatfsOut{
			Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
			Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
		}
		return nil
	})
}
