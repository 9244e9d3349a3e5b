// Package treelist writes down all that can be seen of the files of a tree, so
// that tests can compare two of them: in a container and outside, before and after.
package treelist

import (
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options say what to leave out.
type Options struct {
	// Skip are paths, relative to the tree, that are left out with all below.
	Skip []string
	// SkipXattr, if set, leaves attributes out by name.
	SkipXattr func(name string) bool
}

// List returns one line for each file of the tree at root, sorted by path: type and
// permissions, owner, size, modification time, the first path of the same file
// if it has several, a link's target or a device's numbers, extended attributes, and
// the digest of the content. It stays on root's file system.
func List(root string, opts Options) ([]string, error) {
	var lines []string
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: root, Err: err}
	}
	type file struct{ dev, ino uint64 }
	first := map[file]string{}
	b := new(buffers)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		if slices.Contains(opts.Skip, rel) || d.IsDir() && st.Dev != top.Dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		line, err := b.describe(path, &st, opts)
		if err != nil {
			return err
		}
		if st.Nlink > 1 && !d.IsDir() {
			id := file{st.Dev, st.Ino}
			if first[id] == "" {
				first[id] = rel
			}
			line += fmt.Sprintf(" same=%q", first[id])
		}
		lines = append(lines, fmt.Sprintf("%q %s", rel, line))
		return nil
	})
	return lines, err
}

// buffers are used for all files: in an emulated guest, memory is slow.
type buffers struct{ content, names, value [1 << 16]byte }

func (b *buffers) describe(path string, st *unix.Stat_t, opts Options) (string, error) {
	sec, nsec := st.Mtim.Unix()
	line := fmt.Sprintf("mode=%o owner=%d:%d mtime=%d.%09d", st.Mode, st.Uid, st.Gid, sec, nsec)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		h := fnv.New64a() // in an emulated guest a strong one takes a minute
		if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, b.content[:]); err != nil {
			return "", err
		}
		line += fmt.Sprintf(" size=%d fnv=%x", st.Size, h.Sum(nil))
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" target=%q", target)
	case unix.S_IFCHR, unix.S_IFBLK:
		line += fmt.Sprintf(" device=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	xattrs, err := b.xattrs(path, opts)
	return line + xattrs, err
}

func (b *buffers) xattrs(path string, opts Options) (string, error) {
	n, err := unix.Llistxattr(path, b.names[:])
	if err != nil {
		return "", &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	names := strings.FieldsFunc(string(b.names[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var out strings.Builder
	for _, name := range names {
		if opts.SkipXattr != nil && opts.SkipXattr(name) {
			continue
		}
		n, err := unix.Lgetxattr(path, name, b.value[:])
		if err != nil {
			return "", &fs.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		fmt.Fprintf(&out, " %s=%q", name, b.value[:n])
	}
	return out.String(), nil
}
