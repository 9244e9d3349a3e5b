package procroot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// Root is such a file system.
type Root struct {
	// Mount is its root directory, the process's to change to. Only a process of the
	// mounting user can look into it.
	Mount      *os.File
	server     *fuse.Server
	maxEntries int
	call       atomic.Pointer[Call]
}

// Call sends a request to the guest. It sets the request's container, and has a deadline.
type Call func(context.Context, *guestv1.FileRequest) (*guestv1.FileResponse, error)

// New makes an empty one. It is nil, without an error, for a user who may not mount,
// and where the kernel has no FUSE.
func New() (*Root, error) {
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("show the container's files: %w", err)
	}
	defer dev.Close()
	mnt, err := mount(dev)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("show the container's files: %w", err)
	}
	r := &Root{Mount: mnt, maxEntries: maxEntries}
	if err := r.serve(dev); err != nil {
		_ = mnt.Close()
		return nil, fmt.Errorf("show the container's files: %w", err)
	}
	return r, nil
}

// mount mounts what the FUSE device serves, but nowhere (fsopen(2); the options are
// those of Documentation/filesystems/fuse.rst).
func mount(dev *os.File) (*os.File, error) {
	fsfd, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fsfd) }()
	for _, o := range [][2]string{
		{"source", "applevm"}, {"subtype", "applevm"}, {"fd", fmt.Sprint(dev.Fd())},
		{"rootmode", "40000"}, {"user_id", fmt.Sprint(os.Geteuid())}, {"group_id", fmt.Sprint(os.Getegid())},
		{"max_read", fmt.Sprint(api.MaxFileData)},
	} {
		if err := unix.FsconfigSetString(fsfd, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("option %s of a FUSE file system: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("make a FUSE file system: %w", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount a FUSE file system: %w", err)
	}
	return os.NewFile(uintptr(fd), "a container's files"), nil
}

// serve answers the kernel until the file system is gone.
func (r *Root) serve(dev *os.File) error {
	// The server takes a descriptor of its own, by its number (package fuse, "Mount styles").
	fd, err := unix.FcntlInt(dev.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	none := time.Duration(0) // the container changes its files too
	raw := fs.NewNodeFS(&node{root: r}, &fs.Options{EntryTimeout: &none, AttrTimeout: &none, NegativeTimeout: &none, RootStableAttr: &fs.StableAttr{Ino: 1}})
	r.server, err = fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		MaxWrite: api.MaxFileData, DisableReadDirPlus: true, ExplicitDataCacheControl: true,
		Logger: log.New(io.Discard, "", 0), // the guest could fill the host's log
	})
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	go r.server.Serve()
	return nil
}

// Close gives up Mount, which a process that has started has open itself: the file
// system is gone when that process is.
func (r *Root) Close() {
	if r != nil {
		_ = r.Mount.Close()
	}
}

// Attach lets the container's files appear.
func (r *Root) Attach(call Call) { r.call.Store(&call) }

// do asks the guest.
func (r *Root) do(ctx context.Context, path string, req *guestv1.FileRequest) (*guestv1.FileResponse, syscall.Errno) {
	call := r.call.Load()
	if call == nil {
		return nil, syscall.ENOENT
	}
	req.Path = []byte(path)
	resp, err := (*call)(ctx, req)
	switch {
	case errors.Is(err, context.Canceled):
		return nil, syscall.EINTR
	case err != nil:
		return nil, syscall.EIO
	case resp.GetErrno() > maxErrno:
		return nil, syscall.EIO
	}
	return resp, syscall.Errno(resp.GetErrno())
}

// maxErrno is the highest error number (EHWPOISON, asm-generic/errno.h).
const maxErrno = 133
