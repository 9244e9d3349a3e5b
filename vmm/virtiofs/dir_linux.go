package virtiofs

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// OpenDir implements fuse.RawFileSystem.
func (fs *fileSystem) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return fs.with(in.NodeId, func(n *node) error {
		if n.kind != unix.S_IFDIR {
			return unix.ENOTDIR
		}
		fd, err := ignoringEINTR(func() (int, error) {
			return unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return err
		}
		out.Fh, err = fs.add(&handle{descriptor: descriptor{fd: fd, uses: 1}, node: n, dir: &dirStream{}})
		return err
	})
}

// ReleaseDir implements fuse.RawFileSystem.
func (fs *fileSystem) ReleaseDir(in *fuse.ReleaseIn) { fs.removeHandle(in.Fh) }

// FsyncDir implements fuse.RawFileSystem.
func (fs *fileSystem) FsyncDir(c <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fs.Fsync(c, in)
}

// ReadDir implements fuse.RawFileSystem.
func (fs *fileSystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.list(in, func(_ *node, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem.
func (fs *fileSystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.list(in, func(dir *node, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." {
			// One that has gone meanwhile, or that cannot be held, has no node; the
			// guest looks it up when it needs it.
			if fs.enter(dir, e.Name, entry) != nil {
				*entry = fuse.EntryOut{}
			}
		}
		return true
	})
}

// list calls add with a directory's entries until there are no more or add has no
// room.
func (fs *fileSystem) list(in *fuse.ReadIn, add func(*node, fuse.DirEntry) bool) fuse.Status {
	return fs.with(in.NodeId, func(n *node) error {
		return errno(fs.withHandle(in.Fh, func(h *handle) error {
			if h.dir == nil || n.kind != unix.S_IFDIR {
				return unix.ENOTDIR
			}
			return fs.listFrom(n, h, in.Offset, add)
		}))
	})
}

func (fs *fileSystem) listFrom(n *node, h *handle, offset uint64, add func(*node, fuse.DirEntry) bool) error {
	d := h.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	if offset != d.next {
		if offset > math.MaxInt64 {
			return unix.EINVAL
		}
		d.read = nil
		if _, err := unix.Seek(h.fd, int64(offset), unix.SEEK_SET); err != nil {
			return err
		}
		d.next = offset
	}
	for {
		if len(d.read) == 0 {
			got, err := ignoringEINTR(func() (int, error) { return unix.Getdents(h.fd, d.buf[:]) })
			if err != nil || got == 0 {
				return err
			}
			d.read = d.buf[:got]
		}
		var e fuse.DirEntry
		size := e.Parse(d.read)
		if e.Name == "." || e.Name == ".." {
			e.Ino = n.key.ino // the parent of the root is not the guest's to know
		}
		e.Ino = fs.ino(n.key.device, e.Ino)
		if !add(n, e) {
			return nil
		}
		d.read, d.next = d.read[size:], e.Off
	}
}
