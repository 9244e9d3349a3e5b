package ext4

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// maxPathLen is PATH_MAX less the NUL: nothing could open a longer path.
const maxPathLen = 4095

// cleanPath returns a tar's path without leading, trailing and doubled slashes
// and without ".". A path with ".." is refused: no tool that makes layers
// writes one, and whatever it means, it means leaving a directory.
func cleanPath(p string) (string, error) {
	if strings.IndexByte(p, 0) >= 0 {
		return "", fmt.Errorf("path %q has a NUL: %w", p, errdefs.ErrInvalidArgument)
	}
	// What nearly all paths have at their ends costs no copy.
	for strings.HasPrefix(p, "./") || strings.HasPrefix(p, "/") {
		p = p[strings.IndexByte(p, '/')+1:]
	}
	p = strings.TrimRight(p, "/")
	clean := true
	for rest, more := p, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, "/")
		switch {
		case part == "..":
			return "", fmt.Errorf("path %q has \"..\": %w", p, errdefs.ErrInvalidArgument)
		case part == "" || part == ".":
			clean = false
		case len(part) > maxNameLen:
			return "", fmt.Errorf("a name of %d bytes is longer than %d: %.40q…: %w", len(part), maxNameLen, part, errdefs.ErrInvalidArgument)
		}
	}
	if !clean {
		parts := strings.Split(p, "/")
		kept := parts[:0]
		for _, part := range parts {
			if part != "" && part != "." {
				kept = append(kept, part)
			}
		}
		p = strings.Join(kept, "/")
	}
	if len(p) > maxPathLen {
		return "", fmt.Errorf("a path of %d bytes is longer than %d: %.40q…: %w", len(p), maxPathLen, p, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// splitPath cuts a clean path into its directory and its last name.
func splitPath(p string) (dir, name string) {
	i := strings.LastIndexByte(p, '/')
	return p[:max(i, 0)], p[i+1:]
}

// checkName refuses what cannot be the name of one file.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxNameLen || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q cannot name a file: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// lookup finds the node at a clean path, nil if there is none.
func (w *LayerWriter) lookup(path string) *inode {
	n := w.root
	if path == "" {
		return n
	}
	for part := range strings.SplitSeq(path, "/") {
		if !n.isDir() {
			return nil
		}
		if n = n.dir.lookup(part); n == nil {
			return nil
		}
	}
	return n
}

// parent finds the directory at a clean path and makes what is missing of it,
// as root's with mode 0755.
func (w *LayerWriter) parent(path string) (*inode, error) {
	if path == "" {
		return w.root, nil
	}
	if path == w.lastDir {
		return w.lastNode, nil
	}
	n := w.root
	for i := 0; i < len(path); {
		j := strings.IndexByte(path[i:], '/')
		if j < 0 {
			j = len(path) - i
		}
		name := path[i : i+j]
		child := n.dir.lookup(name)
		switch {
		case child == nil:
			if err := w.charge(len(name)); err != nil {
				return nil, err
			}
			child = &inode{mode: modeDir | 0o755, dir: &dir{parent: n}}
			n.dir.put(strings.Clone(name), child)
		case child.mode&modeFmt == modeSymlink:
			return nil, fmt.Errorf("its parent %q is a symlink in the same layer: %w", path[:i+j], errdefs.ErrInvalidArgument)
		case !child.isDir():
			return nil, fmt.Errorf("its parent %q is not a directory: %w", path[:i+j], errdefs.ErrInvalidArgument)
		}
		n = child
		i += j + 1
	}
	w.lastDir, w.lastNode = path, n
	return n, nil
}
