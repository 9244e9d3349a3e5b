package virtiofs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
)

const setIDs = unix.S_ISUID | unix.S_ISGID

// Mknod implements fuse.RawFileSystem. A device is a number for the guest's own
// kernel: nothing here opens one.
func (fs *fileSystem) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.make(&in.InHeader, name, in.Mode, out, func(dir *node) error {
		return unix.Mknodat(dir.fd, name, in.Mode&^setIDs, int(in.Rdev))
	})
}

// Mkdir implements fuse.RawFileSystem.
func (fs *fileSystem) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.make(&in.InHeader, name, in.Mode&0o7777|unix.S_IFDIR, out, func(dir *node) error {
		return unix.Mkdirat(dir.fd, name, in.Mode&0o1777)
	})
}

// Symlink implements fuse.RawFileSystem.
func (fs *fileSystem) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return fs.make(h, name, unix.S_IFLNK|0o777, out, func(dir *node) error {
		return unix.Symlinkat(target, dir.fd, name)
	})
}

// make makes a file and gives it to the guest, with the owner that it must have.
func (fs *fileSystem) make(h *fuse.InHeader, name string, mode uint32, out *fuse.EntryOut, do func(dir *node) error) fuse.Status {
	if fs.pretends(h, vmm.ShareAppeared) {
		return fs.inDir(h.NodeId, name, func(dir *node) error { return fs.enter(dir, name, out) })
	}
	defer fs.recent.name(h.NodeId, name, true)()
	return fs.change(h.NodeId, name, func(dir *node) error {
		if err := again(func() error { return do(dir) }); err != nil {
			return err
		}
		fd, err := fs.openChild(dir, name)
		if err != nil {
			return err
		}
		err = fs.settle(dir, fd, h, mode)
		_ = unix.Close(fd)
		if err != nil {
			flags := 0
			if mode&unix.S_IFMT == unix.S_IFDIR {
				flags = unix.AT_REMOVEDIR
			}
			_ = unix.Unlinkat(dir.fd, name, flags) // a file without its owner must not stay
			return err
		}
		return fs.enter(dir, name, out)
	})
}

// settle gives a new file the owner that it has where the guest's process makes it
// by itself: the process's, or the group of a directory that hands its own on; then
// the mode, of which the server's own umask and a new owner have taken bits away.
func (fs *fileSystem) settle(dir *node, fd int, h *fuse.InHeader, mode uint32) error {
	parent, err := stat(dir.fd)
	if err != nil {
		return err
	}
	fs.owners.show(dir.fd, parent)
	uid, gid := h.Uid, h.Gid
	if parent.Mode&unix.S_ISGID != 0 {
		gid = parent.Gid
		if mode&unix.S_IFMT == unix.S_IFDIR {
			mode |= unix.S_ISGID
		}
	}
	if fs.owners != nil {
		return fs.settleOwner(fd, int(uid), int(gid), mode, hasDefaultACL(dir))
	}
	st, err := stat(fd)
	if err != nil {
		return err
	}
	if st.Uid != uid || st.Gid != gid {
		err := chown(fd, int(uid), int(gid))
		if errors.Is(err, unix.EPERM) {
			// A root that may not. None gets the power of an owner whom the guest did not
			// mean.
			mode &^= setIDs
		} else if err != nil {
			return err
		}
		if st, err = stat(fd); err != nil {
			return err
		}
	}
	if mode&unix.S_IFMT == unix.S_IFLNK || uint32(st.Mode)&0o7777 == mode&0o7777 {
		return nil
	}
	if mode&^uint32(st.Mode)&(setIDs|unix.S_ISVTX) == 0 && hasDefaultACL(dir) {
		return nil // which decides the mode
	}
	return chmod(fd, mode&0o7777)
}

// hasDefaultACL reports whether new files in dir get an access control list.
func hasDefaultACL(dir *node) bool {
	n, err := unix.Getxattr(procPath(dir.fd), aclDefault, nil)
	return err == nil && n > 0
}

// Create implements fuse.RawFileSystem.
func (fs *fileSystem) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer fs.recent.name(in.NodeId, name, true)()
	return fs.change(in.NodeId, name, func(dir *node) error {
		flags := int(in.Flags) & openFlags
		fd, err := ignoringEINTR(func() (int, error) {
			return unix.Openat(dir.fd, name, flags&^unix.O_TRUNC|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, in.Mode&0o777)
		})
		made := err == nil
		if made {
			if err := fs.settle(dir, fd, &in.InHeader, in.Mode&0o7777|unix.S_IFREG); err != nil {
				_ = unix.Close(fd)
				_ = unix.Unlinkat(dir.fd, name, 0)
				return err
			}
		} else if err != unix.EEXIST || in.Flags&unix.O_EXCL != 0 { //nolint:errorlint // system calls return it bare
			return err
		}
		if err := fs.enter(dir, name, &out.EntryOut); err != nil {
			if made {
				_ = unix.Close(fd)
			}
			return err
		}
		n, err := fs.node(out.NodeId)
		if err == nil {
			defer fs.done(&n.descriptor)
			if !made { // by somebody else meanwhile: what it is must be looked at first
				fd, err = reopen(n, flags)
			}
		} else if made {
			_ = unix.Close(fd)
		}
		if err != nil {
			fs.Forget(out.NodeId, 1)
			return err
		}
		if out.Fh, err = fs.addHandle(n, fd); err != nil {
			fs.Forget(out.NodeId, 1)
			return err
		}
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		return nil
	})
}

// Unlink implements fuse.RawFileSystem.
func (fs *fileSystem) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return fs.remove(h, name, 0)
}

// Rmdir implements fuse.RawFileSystem.
func (fs *fileSystem) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return fs.remove(h, name, unix.AT_REMOVEDIR)
}

func (fs *fileSystem) remove(h *fuse.InHeader, name string, flags int) fuse.Status {
	if fs.pretends(h, vmm.ShareAppeared, vmm.ShareFileGone, vmm.ShareDirGone) {
		return fuse.OK
	}
	defer fs.recent.name(h.NodeId, name, false)()
	return fs.change(h.NodeId, name, func(dir *node) error {
		return again(func() error { return unix.Unlinkat(dir.fd, name, flags) })
	})
}

// Rename implements fuse.RawFileSystem.
func (fs *fileSystem) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	defer fs.recent.name(in.NodeId, from, in.Flags&unix.RENAME_EXCHANGE != 0)()
	defer fs.recent.name(in.Newdir, to, true)()
	return fs.change(in.NodeId, from, func(old *node) error {
		return errno(fs.inDir(in.Newdir, to, func(dir *node) error {
			if err := again(func() error { return unix.Renameat2(old.fd, from, dir.fd, to, uint(in.Flags)) }); err != nil {
				return err
			}
			fs.moved(dir, to)
			if in.Flags&unix.RENAME_EXCHANGE != 0 {
				fs.moved(old, from)
			}
			return nil
		}))
	})
}

// Link implements fuse.RawFileSystem.
func (fs *fileSystem) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	defer fs.recent.name(in.NodeId, name, true)()
	defer fs.recent.file(in.Oldnodeid)()
	return fs.change(in.NodeId, name, func(dir *node) error {
		return errno(fs.with(in.Oldnodeid, func(n *node) error {
			err := again(func() error {
				return unix.Linkat(unix.AT_FDCWD, procPath(n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW)
			})
			if err != nil {
				return err
			}
			return fs.enter(dir, name, out)
		}))
	})
}

// errno is the error of a status.
func errno(s fuse.Status) error {
	if s == fuse.OK {
		return nil
	}
	return unix.Errno(s)
}
