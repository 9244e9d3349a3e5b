package virtiofs

import (
	"math"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// openFlags are those of open(2) that the guest decides. O_APPEND is a property of
// each write here, O_DIRECT of the guest's cache.
const openFlags = unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC

// maxCopy is the most that one request copies within the host, in bytes: the guest
// cannot give up one that runs.
const maxCopy = 64 << 20

// handle is a file or directory that the guest has open.
type handle struct {
	descriptor
	node *node      // which does not sleep meanwhile
	dir  *dirStream // of a directory
}

// reopen opens what n names: a regular file, as nothing else may be opened here. A
// FIFO would wait, a device is the host's.
func reopen(n *node, flags int) (int, error) {
	switch n.kind {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return -1, unix.EISDIR
	default:
		return -1, unix.EPERM
	}
	return ignoringEINTR(func() (int, error) {
		return unix.Open(procPath(n.fd), flags&openFlags|unix.O_CLOEXEC, 0)
	})
}

func (fs *fileSystem) addHandle(n *node, fd int) (uint64, error) {
	return fs.add(&handle{descriptor: descriptor{fd: fd, uses: 1}, node: n})
}

// add numbers h, or closes it if there are too many. Its node is in use.
func (fs *fileSystem) add(h *handle) (uint64, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if !fs.room() {
		_ = unix.Close(h.fd)
		return 0, unix.ENFILE
	}
	h.node.uses++
	fs.open++
	fs.last++
	fs.handles[fs.last] = h
	return fs.last, nil
}

// handle returns an open file; done must follow.
func (fs *fileSystem) handle(id uint64) (*handle, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	h := fs.handles[id]
	if h == nil {
		return nil, unix.EBADF
	}
	h.uses++
	return h, nil
}

// withHandle calls do with an open file.
func (fs *fileSystem) withHandle(id uint64, do func(*handle) error) fuse.Status {
	h, err := fs.handle(id)
	if err != nil {
		return status(err)
	}
	defer fs.done(&h.descriptor)
	return status(do(h))
}

func (fs *fileSystem) removeHandle(id uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if h := fs.handles[id]; h != nil {
		fs.dropHandle(id, h)
	}
}

func (fs *fileSystem) dropHandle(id uint64, h *handle) {
	delete(fs.handles, id)
	fs.release(&h.descriptor)
	fs.release(&h.node.descriptor)
}

// Open implements fuse.RawFileSystem.
func (fs *fileSystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if fs.readOnly && (in.Flags&unix.O_ACCMODE != unix.O_RDONLY || in.Flags&unix.O_TRUNC != 0) {
		return fuse.EROFS
	}
	if in.Flags&unix.O_TRUNC != 0 {
		defer fs.recent.file(in.NodeId)()
	}
	return fs.with(in.NodeId, func(n *node) error {
		fd, err := reopen(n, int(in.Flags))
		if err != nil {
			return err
		}
		// The guest drops its cache when it finds that size or time have changed.
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		out.Fh, err = fs.addHandle(n, fd)
		return err
	})
}

// Release implements fuse.RawFileSystem.
func (fs *fileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { fs.removeHandle(in.Fh) }

// Read implements fuse.RawFileSystem. Fewer bytes than buf has mean the end of the
// file.
func (fs *fileSystem) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := 0
	s := fs.withHandle(in.Fh, func(h *handle) error {
		for n < len(buf) {
			got, err := ignoringEINTR(func() (int, error) { return unix.Pread(h.fd, buf[n:], int64(in.Offset)+int64(n)) })
			if err != nil && n == 0 {
				return err
			}
			if err != nil || got == 0 {
				break
			}
			n += got
		}
		return nil
	})
	if s != fuse.OK {
		return nil, s
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write implements fuse.RawFileSystem.
func (fs *fileSystem) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (written uint32, s fuse.Status) {
	if int(in.Size) != len(data) || in.Offset > math.MaxInt64-maxIO {
		return 0, fuse.EINVAL
	}
	defer fs.recent.file(in.NodeId)()
	flags := 0
	if in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0 {
		flags = unix.RWF_APPEND // others may append as well; but pages have their places
	}
	s = fs.withHandle(in.Fh, func(h *handle) error {
		for int(written) < len(data) {
			n, err := ignoringEINTR(func() (int, error) {
				return unix.Pwritev2(h.fd, [][]byte{data[written:]}, int64(in.Offset)+int64(written), flags)
			})
			if err != nil && written == 0 {
				return err
			}
			if err != nil || n == 0 {
				break
			}
			written += uint32(n)
		}
		return nil
	})
	return written, s
}

// Fsync implements fuse.RawFileSystem. There is no Flush: what is written is written.
func (fs *fileSystem) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fs.withHandle(in.Fh, func(h *handle) error {
		if in.FsyncFlags&1 != 0 { // FUSE_FSYNC_FDATASYNC
			return again(func() error { return unix.Fdatasync(h.fd) })
		}
		return again(func() error { return unix.Fsync(h.fd) })
	})
}

// Fallocate implements fuse.RawFileSystem.
func (fs *fileSystem) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	defer fs.recent.file(in.NodeId)()
	return fs.withHandle(in.Fh, func(h *handle) error {
		return again(func() error { return unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length)) })
	})
}

// Lseek implements fuse.RawFileSystem: for data and holes, all else the guest knows.
func (fs *fileSystem) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	return fs.withHandle(in.Fh, func(h *handle) error {
		if h.dir != nil {
			return unix.EISDIR
		}
		at, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
		out.Offset = uint64(at)
		return err
	})
}

// CopyFileRange implements fuse.RawFileSystem.
func (fs *fileSystem) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (copied uint32, s fuse.Status) {
	defer fs.recent.file(in.NodeIdOut)()
	s = fs.withHandle(in.FhIn, func(from *handle) error {
		return errno(fs.withHandle(in.FhOut, func(to *handle) error {
			at, place := int64(in.OffIn), int64(in.OffOut)
			n, err := ignoringEINTR(func() (int, error) {
				return unix.CopyFileRange(from.fd, &at, to.fd, &place, int(min(in.Len, maxCopy)), 0)
			})
			copied = uint32(max(0, n))
			return err
		}))
	})
	return copied, s
}

// dirStream is where a guest is in a directory.
type dirStream struct {
	mu   sync.Mutex
	read []byte // what the kernel has given and the guest has not got yet
	next uint64 // the position of its first entry
	buf  [32 << 10]byte
}
