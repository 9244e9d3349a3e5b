package procroot

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

var (
	_ fs.NodeOpener        = (*node)(nil)
	_ fs.NodeCreater       = (*node)(nil)
	_ fs.NodeReader        = (*node)(nil)
	_ fs.NodeWriter        = (*node)(nil)
	_ fs.NodeFsyncer       = (*node)(nil)
	_ fs.NodeGetxattrer    = (*node)(nil)
	_ fs.NodeListxattrer   = (*node)(nil)
	_ fs.NodeSetxattrer    = (*node)(nil)
	_ fs.NodeRemovexattrer = (*node)(nil)
)

// An open file is no more than its path: nothing is open in the guest.
const openFlags = fuse.FOPEN_DIRECT_IO

// Open implements fs.NodeOpener.
func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&unix.O_TRUNC != 0 {
		var zero uint64
		if _, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{
			Operation: &guestv1.FileRequest_Change{Change: &guestv1.FileChange{Size: &zero}}}); errno != 0 {
			return nil, 0, errno
		}
	}
	return nil, openFlags, 0
}

// Create implements fs.NodeCreater.
func (n *node) Create(ctx context.Context, name string, _, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	child, errno := n.child(ctx, name, makeRequest(&guestv1.FileMake{Mode: unix.S_IFREG | mode&0o7777}), out)
	return child, nil, openFlags, errno
}

// Read implements fs.NodeReader.
func (n *node) Read(ctx context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	resp, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{
		Operation: &guestv1.FileRequest_Read{Read: &guestv1.FileRead{Offset: off, Size: uint32(len(dest))}}})
	if errno != 0 {
		return nil, errno
	}
	if len(resp.GetData()) > len(dest) {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(resp.GetData()), 0
}

// Write implements fs.NodeWriter.
func (n *node) Write(ctx context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	_, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{
		Operation: &guestv1.FileRequest_Write{Write: &guestv1.FileWrite{Offset: off, Data: data}}})
	if errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0
}

// Fsync does nothing: the disk is the container's to sync, as ever.
func (n *node) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

// Getxattr implements fs.NodeGetxattrer.
func (n *node) Getxattr(ctx context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	return n.xattr(ctx, name, dest)
}

// Listxattr implements fs.NodeListxattrer.
func (n *node) Listxattr(ctx context.Context, dest []byte) (uint32, syscall.Errno) {
	return n.xattr(ctx, "", dest)
}

func (n *node) xattr(ctx context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	resp, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{
		Operation: &guestv1.FileRequest_GetXattr{GetXattr: &guestv1.FileGetXattr{Name: []byte(name)}}})
	if errno != 0 {
		return 0, errno
	}
	size := uint32(len(resp.GetData()))
	if len(dest) < len(resp.GetData()) {
		return size, syscall.ERANGE // or only the size is asked for
	}
	copy(dest, resp.GetData())
	return size, 0
}

// Setxattr implements fs.NodeSetxattrer.
func (n *node) Setxattr(ctx context.Context, name string, value []byte, flags uint32) syscall.Errno {
	_, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{
		Operation: &guestv1.FileRequest_SetXattr{SetXattr: &guestv1.FileSetXattr{Name: []byte(name), Value: value, Flags: flags}}})
	return errno
}

// Removexattr implements fs.NodeRemovexattrer.
func (n *node) Removexattr(ctx context.Context, name string) syscall.Errno {
	_, errno := n.root.do(ctx, n.path(), &guestv1.FileRequest{
		Operation: &guestv1.FileRequest_SetXattr{SetXattr: &guestv1.FileSetXattr{Name: []byte(name), Remove: true}}})
	return errno
}
