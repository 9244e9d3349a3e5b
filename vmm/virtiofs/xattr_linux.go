package virtiofs

import (
	"bytes"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const aclDefault = "system.posix_acl_default"

// sharedXattr says which extended attributes the guest may see and set: those that
// belong to files. What labels files for the host's security modules, and what
// overlayfs and others keep in trusted.*, is the host's.
func (fs *fileSystem) sharedXattr(name string) bool {
	switch name {
	case ownerXattr:
		return fs.owners == nil
	case "security.capability", "system.posix_acl_access", aclDefault:
		return true
	}
	return strings.HasPrefix(name, "user.") && len(name) <= unix.NAME_MAX
}

// GetXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (size uint32, s fuse.Status) {
	if !fs.sharedXattr(name) {
		return 0, fuse.ENODATA
	}
	s = fs.with(h.NodeId, func(n *node) error {
		got, err := ignoringEINTR(func() (int, error) { return unix.Getxattr(procPath(n.fd), name, dest) })
		size = uint32(max(0, got))
		return err
	})
	return size, s
}

// ListXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (size uint32, s fuse.Status) {
	s = fs.with(h.NodeId, func(n *node) error {
		all := make([]byte, maxXattr)
		got, err := ignoringEINTR(func() (int, error) { return unix.Listxattr(procPath(n.fd), all) })
		if err != nil {
			return err
		}
		var list []byte
		for name := range bytes.SplitSeq(all[:got], []byte{0}) {
			if fs.sharedXattr(string(name)) {
				list = append(append(list, name...), 0)
			}
		}
		size = uint32(len(list))
		if len(dest) > 0 && len(list) > len(dest) {
			return unix.ERANGE
		}
		copy(dest, list)
		return nil
	})
	return size, s
}

// SetXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	switch {
	case fs.readOnly:
		return fuse.EROFS
	case int(in.Size) != len(value):
		return fuse.EINVAL
	case len(value) > maxXattr:
		return fuse.Status(unix.E2BIG)
	case !fs.sharedXattr(name):
		return fuse.EPERM
	}
	defer fs.recent.file(in.NodeId)()
	return fs.with(in.NodeId, func(n *node) error {
		return again(func() error { return unix.Setxattr(procPath(n.fd), name, value, int(in.Flags)) })
	})
}

// RemoveXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	switch {
	case fs.readOnly:
		return fuse.EROFS
	case !fs.sharedXattr(name):
		return fuse.EPERM
	}
	defer fs.recent.file(h.NodeId)()
	return fs.with(h.NodeId, func(n *node) error {
		return again(func() error { return unix.Removexattr(procPath(n.fd), name) })
	})
}
