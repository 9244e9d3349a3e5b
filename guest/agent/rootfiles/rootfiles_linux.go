// Package rootfiles does to the files below a directory what the host's clients
// ask for by applevm.guest.v1.FileRequest: one system call a request, or few.
//
// It keeps no state between requests. A path has no symbolic links to follow: the
// host's kernel walks it name by name and asks for each. So whatever a container
// makes of its files meanwhile, no request leaves the directory.
package rootfiles

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// Do does what req asks for below the open directory root (O_PATH suffices). What
// goes wrong is in the answer's errno.
func Do(root int, req *guestv1.FileRequest) *guestv1.FileResponse {
	resp := &guestv1.FileResponse{}
	if err := do(root, req, resp); err != nil {
		return &guestv1.FileResponse{Errno: uint32(errno(err))}
	}
	return resp
}

// Changes reports whether a request changes files.
func Changes(req *guestv1.FileRequest) bool {
	switch req.GetOperation().(type) {
	case *guestv1.FileRequest_Write, *guestv1.FileRequest_Make, *guestv1.FileRequest_Change,
		*guestv1.FileRequest_Remove, *guestv1.FileRequest_Rename, *guestv1.FileRequest_SetXattr:
		return true
	}
	return false
}

func errno(err error) unix.Errno {
	var no unix.Errno
	if errors.As(err, &no) {
		return no
	}
	return unix.EIO
}

func do(root int, req *guestv1.FileRequest, resp *guestv1.FileResponse) error {
	switch op := req.GetOperation().(type) {
	case *guestv1.FileRequest_Read:
		return read(root, string(req.GetPath()), op.Read, resp)
	case *guestv1.FileRequest_Write:
		return write(root, string(req.GetPath()), op.Write)
	case *guestv1.FileRequest_List:
		return list(root, string(req.GetPath()), op.List, resp)
	}
	p, err := openParent(root, string(req.GetPath()))
	if err != nil {
		return err
	}
	defer p.close()
	switch op := req.GetOperation().(type) {
	case *guestv1.FileRequest_Stat:
		return p.stat(resp)
	case *guestv1.FileRequest_Make:
		if err := p.make(root, op.Make); err != nil {
			return err
		}
		return p.stat(resp)
	case *guestv1.FileRequest_Change:
		if err := p.change(root, string(req.GetPath()), op.Change); err != nil {
			return err
		}
		return p.stat(resp)
	case *guestv1.FileRequest_Remove:
		flags := 0
		if op.Remove.GetDirectory() {
			flags = unix.AT_REMOVEDIR
		}
		return unix.Unlinkat(p.dir, p.name, flags)
	case *guestv1.FileRequest_Rename:
		if op.Rename.GetFlags()&unix.RENAME_WHITEOUT != 0 {
			return unix.EINVAL
		}
		to, err := openParent(root, string(op.Rename.GetTo()))
		if err != nil {
			return err
		}
		defer to.close()
		return unix.Renameat2(p.dir, p.name, to.dir, to.name, uint(op.Rename.GetFlags()))
	case *guestv1.FileRequest_ReadLink:
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(p.dir, p.name, b)
		if err != nil {
			return err
		}
		resp.Data = b[:n]
		return nil
	case *guestv1.FileRequest_GetXattr:
		return p.getXattr(string(op.GetXattr.GetName()), resp)
	case *guestv1.FileRequest_SetXattr:
		return p.setXattr(op.SetXattr)
	case *guestv1.FileRequest_StatFs:
		return p.statFS(resp)
	}
	return unix.ENOSYS
}

// place is a file by its name in an open directory; the root is "." in itself.
type place struct {
	dir  int
	name string
}

func (p place) close() { _ = unix.Close(p.dir) }

func openParent(root int, path string) (place, error) {
	dir, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	if path == "" {
		name = "."
	} else if path[0] == '/' || name == "" || name == "." || name == ".." {
		return place{}, unix.EINVAL
	}
	fd, err := open(root, dir, unix.O_PATH|unix.O_DIRECTORY)
	return place{fd, name}, err
}

// open opens a file of a path without symbolic links (openat2(2)).
func open(root int, path string, flags uint64) (int, error) {
	if path == "" {
		path = "."
	}
	for {
		fd, err := unix.Openat2(root, path, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != unix.EINTR && err != unix.EAGAIN { // something was renamed meanwhile
			return fd, err
		}
	}
}

// openRegular opens a regular file. Of anything else even opening could have effects.
func openRegular(root int, path string, flags uint64) (int, error) {
	fd, err := open(root, path, flags|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return -1, unix.EINVAL
	}
	return fd, nil
}

func read(root int, path string, op *guestv1.FileRead, resp *guestv1.FileResponse) error {
	fd, err := openRegular(root, path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, min(op.GetSize(), api.MaxFileData))
	n := 0
	for n < len(b) {
		m, err := unix.Pread(fd, b[n:], op.GetOffset()+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if m == 0 {
			break
		}
		n += m
	}
	resp.Data = b[:n]
	return nil
}

func write(root int, path string, op *guestv1.FileWrite) error {
	fd, err := openRegular(root, path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	b, at := op.GetData(), op.GetOffset()
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

func (p place) stat(resp *guestv1.FileResponse) error {
	var st unix.Stat_t
	if err := unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	resp.Attr = &guestv1.FileAttr{
		Dev: st.Dev, Ino: st.Ino, Mode: st.Mode, Links: uint32(st.Nlink), Uid: st.Uid, Gid: st.Gid,
		Size: uint64(st.Size), Blocks: uint64(st.Blocks), Rdev: st.Rdev,
		AtimeNs: st.Atim.Nano(), MtimeNs: st.Mtim.Nano(), CtimeNs: st.Ctim.Nano(),
	}
	return nil
}

func (p place) make(root int, op *guestv1.FileMake) error {
	mode := op.GetMode()
	switch {
	case len(op.GetLinkTo()) > 0:
		from, err := openParent(root, string(op.GetLinkTo()))
		if err != nil {
			return err
		}
		defer from.close()
		return unix.Linkat(from.dir, from.name, p.dir, p.name, 0)
	case mode&unix.S_IFMT == unix.S_IFLNK:
		return unix.Symlinkat(string(op.GetTarget()), p.dir, p.name)
	case mode&unix.S_IFMT == unix.S_IFDIR:
		if err := unix.Mkdirat(p.dir, p.name, mode&0o7777); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(p.dir, p.name, mode, int(op.GetRdev())); err != nil {
			return err
		}
	}
	// The creation mask is the client's, not the agent's.
	return unix.Fchmodat(p.dir, p.name, mode&0o7777, 0)
}

func (p place) change(root int, path string, op *guestv1.FileChange) error {
	if op.Size != nil {
		fd, err := openRegular(root, path, unix.O_WRONLY)
		if err != nil {
			return err
		}
		err = unix.Ftruncate(fd, int64(op.GetSize()))
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
	}
	// The mode comes after the owner: a new owner takes away set-user-ID.
	if op.Uid != nil || op.Gid != nil {
		uid, gid := -1, -1
		if op.Uid != nil {
			uid = int(op.GetUid())
		}
		if op.Gid != nil {
			gid = int(op.GetGid())
		}
		if err := unix.Fchownat(p.dir, p.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if op.Mode != nil {
		if err := p.chmod(op.GetMode()); err != nil {
			return err
		}
	}
	if op.AtimeNs != nil || op.MtimeNs != nil {
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
		if op.AtimeNs != nil {
			times[0] = unix.NsecToTimespec(op.GetAtimeNs())
		}
		if op.MtimeNs != nil {
			times[1] = unix.NsecToTimespec(op.GetMtimeNs())
		}
		return unix.UtimesNanoAt(p.dir, p.name, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// chmod changes permission bits, never those of what a symbolic link names.
func (p place) chmod(mode uint32) error {
	return p.byLink(func(link string) error { return unix.Chmod(link, mode&0o7777) })
}

// byLink calls f with a name of the file itself, for system calls that take no
// descriptor of the O_PATH kind, and follow links (proc_pid_fd(5)).
func (p place) byLink(f func(link string) error) error {
	fd, err := open(p.dir, p.name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return f(fdLink(fd))
}

func (p place) statFS(resp *guestv1.FileResponse) error {
	return p.byLink(func(link string) error {
		var st unix.Statfs_t
		if err := unix.Statfs(link, &st); err != nil {
			return err
		}
		resp.FileSystem = &guestv1.FileSystem{
			Blocks: st.Blocks, Free: st.Bfree, Available: st.Bavail, Files: st.Files, FreeFiles: st.Ffree,
			BlockSize: uint32(st.Bsize), NameLength: uint32(st.Namelen),
		}
		return nil
	})
}
