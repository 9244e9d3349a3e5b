package ext4

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"
)

// Stat is what an inode says; FileInfo.Sys of a reader's files is a *Stat.
type Stat struct {
	Ino          uint32
	Mode         uint32 // as st_mode: type and permissions
	Nlink        uint32 // 1 for a directory with too many subdirectories to count
	UID, GID     uint32
	Size         int64
	Blocks       int64 // in units of 512 bytes
	Major, Minor uint32
	Atime        time.Time
	Mtime        time.Time
	Ctime        time.Time
	Crtime       time.Time
}

// maxSymlinks is how many symlinks one path may lead through (MAXSYMLINKS).
const maxSymlinks = 40

var (
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
	_ fs.ReadLinkFS = (*FS)(nil)
	_ fs.ReadFileFS = (*FS)(nil)
)

// validPath is fs.ValidPath for names that need not be UTF-8.
func validPath(name string) bool {
	if name == "." {
		return true
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

func pathError(op, name string, err error) error {
	var pe *fs.PathError
	if err == nil || errors.As(err, &pe) {
		return err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// find returns the inode at name. Symlinks on the way are followed, the last
// one only if follow is set; they cannot lead out of the image.
func (f *FS) find(name string, follow bool) (*node, error) {
	if !validPath(name) {
		return nil, fs.ErrInvalid
	}
	root, err := f.inode(inoRoot)
	if err != nil {
		return nil, err
	}
	trail := []*node{root} // the directories from the root to here
	todo := name
	links := 0
	for {
		here := trail[len(trail)-1]
		var part string
		part, todo, _ = strings.Cut(todo, "/")
		switch part {
		case "", ".":
			if todo == "" {
				return here, nil
			}
			continue
		case "..":
			trail = trail[:max(1, len(trail)-1)]
			if todo == "" {
				return trail[len(trail)-1], nil
			}
			continue
		}
		list, err := f.readDir(here)
		if err != nil {
			return nil, err
		}
		e, ok := list.find(part)
		if !ok {
			return nil, fs.ErrNotExist
		}
		n, err := f.child(here.ino, e)
		if err != nil {
			return nil, err
		}
		last := strings.Trim(todo, "/") == ""
		switch {
		case n.mode&modeFmt == modeSymlink && (follow || !last):
			if links++; links > maxSymlinks {
				return nil, errors.New("too many levels of symbolic links")
			}
			target, err := f.target(n)
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(target, "/") {
				trail = trail[:1]
			}
			if todo = target + "/" + todo; len(todo) > maxPathLen*maxSymlinks {
				return nil, errors.New("path too long")
			}
		case last:
			return n, nil
		case n.mode&modeFmt != modeDir:
			return nil, fs.ErrNotExist
		default:
			trail = append(trail, n)
		}
	}
}

// target returns where a symlink points.
func (f *FS) target(n *node) (string, error) {
	if n.size == 0 || n.size > uint64(f.block) {
		return "", corrupt("symlink inode %d of %d bytes", n.ino, n.size)
	}
	b := make([]byte, n.size)
	if n.size <= fastSymlink && n.flags&inodeExtents == 0 {
		copy(b, n.block[:])
	} else if err := f.readFile(n, b, 0); err != nil {
		return "", err
	}
	if strings.IndexByte(string(b), 0) >= 0 {
		return "", corrupt("symlink inode %d: target with a NUL", n.ino)
	}
	return string(b), nil
}

// Open opens a file or directory, following symlinks. A regular file is also
// an io.ReaderAt and an io.Seeker, a directory an fs.ReadDirFile.
func (f *FS) Open(name string) (fs.File, error) {
	n, err := f.find(name, true)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	o := openFile{fs: f, node: n, name: name}
	if n.mode&modeFmt == modeDir {
		return &openDir{openFile: o}, nil
	}
	r := &openRegular{openFile: o}
	if n.mode&modeFmt == modeRegular {
		r.SectionReader = io.NewSectionReader(fileReader{f, n}, 0, int64(n.size))
	} else {
		r.SectionReader = io.NewSectionReader(fileReader{f, n}, 0, 0)
	}
	return r, nil
}

// ReadDir reads a directory, following symlinks, sorted by name.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := f.find(name, true)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	list, err := f.list(n)
	return list, pathError("readdir", name, err)
}

func (f *FS) list(n *node) ([]fs.DirEntry, error) {
	if n.mode&modeFmt != modeDir {
		return nil, errors.New("not a directory")
	}
	l, err := f.readDir(n)
	if err != nil {
		return nil, err
	}
	out := make([]fs.DirEntry, len(l.entries))
	for i := range l.entries {
		e := &dirEntry{fs: f, parent: n.ino, dirent: l.entries[i]}
		if e.ft == ftUnknown { // a file system without the filetype feature
			c, err := f.inode(e.ino)
			if err != nil {
				return nil, err
			}
			e.ft = fileType(c.mode)
		}
		out[i] = e
	}
	return out, nil
}

// Stat describes a file, following symlinks.
func (f *FS) Stat(name string) (fs.FileInfo, error) { return f.stat("stat", name, true) }

// Lstat describes a file without following a symlink at the path's end.
func (f *FS) Lstat(name string) (fs.FileInfo, error) { return f.stat("lstat", name, false) }

func (f *FS) stat(op, name string, follow bool) (fs.FileInfo, error) {
	n, err := f.find(name, follow)
	if err != nil {
		return nil, pathError(op, name, err)
	}
	return newFileInfo(name, n), nil
}

// maxReadFile bounds ReadFile: an image says how large a file is, and a hole
// costs it nothing.
const maxReadFile = 64 << 20

// ReadFile reads a regular file of at most 64 MiB; for a larger one use Open.
func (f *FS) ReadFile(name string) ([]byte, error) {
	n, err := f.find(name, true)
	switch {
	case err != nil:
	case n.mode&modeFmt != modeRegular:
		err = errors.New("not a regular file")
	case n.size > maxReadFile:
		err = fmt.Errorf("%d bytes are too many to read at once", n.size)
	}
	if err != nil {
		return nil, pathError("read", name, err)
	}
	b := make([]byte, n.size)
	return b, pathError("read", name, f.readFile(n, b, 0))
}

// ReadLink returns a symlink's target.
func (f *FS) ReadLink(name string) (string, error) {
	n, err := f.find(name, false)
	if err == nil && n.mode&modeFmt != modeSymlink {
		err = fs.ErrInvalid
	}
	if err != nil {
		return "", pathError("readlink", name, err)
	}
	target, err := f.target(n)
	return target, pathError("readlink", name, err)
}

// Xattrs returns the extended attributes of a file by full name ("user.a"),
// without following a symlink at the path's end. POSIX ACLs have the form that
// getxattr(2) gives them.
func (f *FS) Xattrs(name string) (map[string][]byte, error) {
	n, err := f.find(name, false)
	if err != nil {
		return nil, pathError("listxattr", name, err)
	}
	x, err := f.xattrs(n)
	return x, pathError("listxattr", name, err)
}
