package ext4

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"time"
)

// fileInfo is an fs.FileInfo.
type fileInfo struct {
	name string
	mode fs.FileMode
	stat *Stat
}

func newFileInfo(name string, n *node) *fileInfo {
	s := &Stat{
		Ino:    n.ino,
		Mode:   uint32(n.mode),
		Nlink:  uint32(n.links),
		UID:    n.uid,
		GID:    n.gid,
		Size:   int64(n.size),
		Blocks: int64(n.blocks),
		Atime:  n.atime.time(),
		Mtime:  n.mtime.time(),
		Ctime:  n.ctime.time(),
		Crtime: n.crtime.time(),
	}
	if t := n.mode & modeFmt; t == modeChar || t == modeBlock {
		s.Major, s.Minor = n.device()
	}
	return &fileInfo{path.Base(name), goMode(n.mode), s}
}

func (i *fileInfo) Name() string       { return i.name }
func (i *fileInfo) Size() int64        { return i.stat.Size }
func (i *fileInfo) Mode() fs.FileMode  { return i.mode }
func (i *fileInfo) ModTime() time.Time { return i.stat.Mtime }
func (i *fileInfo) IsDir() bool        { return i.mode.IsDir() }
func (i *fileInfo) Sys() any           { return i.stat }

// goMode translates a mode of stat(2).
func goMode(mode uint16) fs.FileMode {
	m := fs.FileMode(mode&0o777) | goType(fileType(mode))
	if mode&modeSetuid != 0 {
		m |= fs.ModeSetuid
	}
	if mode&modeSetgid != 0 {
		m |= fs.ModeSetgid
	}
	if mode&modeSticky != 0 {
		m |= fs.ModeSticky
	}
	return m
}

func goType(ft byte) fs.FileMode {
	switch ft {
	case ftRegular:
		return 0
	case ftDir:
		return fs.ModeDir
	case ftChar:
		return fs.ModeDevice | fs.ModeCharDevice
	case ftBlock:
		return fs.ModeDevice
	case ftFIFO:
		return fs.ModeNamedPipe
	case ftSocket:
		return fs.ModeSocket
	case ftSymlink:
		return fs.ModeSymlink
	}
	return fs.ModeIrregular
}

// dirEntry is an fs.DirEntry.
type dirEntry struct {
	fs     *FS
	parent uint32
	dirent
}

func (e *dirEntry) Name() string      { return e.name }
func (e *dirEntry) IsDir() bool       { return e.ft == ftDir }
func (e *dirEntry) Type() fs.FileMode { return goType(e.ft) }

func (e *dirEntry) Info() (fs.FileInfo, error) {
	n, err := e.fs.child(e.parent, e.dirent)
	if err != nil {
		return nil, pathError("lstat", e.name, err)
	}
	return newFileInfo(e.name, n), nil
}

// openFile is what open files and directories have in common.
type openFile struct {
	fs   *FS
	node *node
	name string
}

func (o *openFile) Stat() (fs.FileInfo, error) { return newFileInfo(o.name, o.node), nil }
func (o *openFile) Close() error               { return nil }

// openRegular is an open file. What is no regular file reads as empty.
type openRegular struct {
	openFile
	*io.SectionReader
}

// Data finds the next bytes, from off on, that are not in a hole: those from start
// to before end. It returns io.EOF if none follow. (lseek(2), SEEK_DATA and
// SEEK_HOLE.)
func (o *openRegular) Data(off int64) (start, end int64, err error) {
	size := o.Size() // of what is read
	if off < 0 {
		return 0, 0, &fs.PathError{Op: "seek", Path: o.name, Err: fs.ErrInvalid}
	}
	block := o.fs.block
	start = -1
	for at := off; at < size; {
		r, err := o.fs.mapBlock(o.node, uint64(at/block))
		if err != nil {
			return 0, 0, pathError("seek", o.name, err)
		}
		if r.physical == 0 && start >= 0 {
			return start, at, nil
		}
		if r.physical != 0 && start < 0 {
			start = at
		}
		// No run is longer than a file can have blocks, but one may reach beyond it.
		if r.count > uint64((size-at)/block) {
			break
		}
		at = (at/block + int64(r.count)) * block
	}
	if start < 0 {
		return 0, 0, io.EOF
	}
	return start, size, nil
}

// fileReader reads a file's contents.
type fileReader struct {
	fs   *FS
	node *node
}

// ReadAt fills p; the section reader above it keeps off within the file.
func (r fileReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.fs.readFile(r.node, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// openDir is an open directory.
type openDir struct {
	openFile
	list []fs.DirEntry
	read bool
}

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errors.New("is a directory")}
}

// ReadDir returns the next n entries, or all that are left if n <= 0.
func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		list, err := d.fs.list(d.node)
		if err != nil {
			return nil, pathError("readdir", d.name, err)
		}
		d.list, d.read = list, true
	}
	if n <= 0 {
		out := d.list
		d.list = nil
		return out, nil
	}
	if len(d.list) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.list))
	out := d.list[:n]
	d.list = d.list[n:]
	return out, nil
}
