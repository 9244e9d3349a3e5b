package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Split writes the content of a tar as n layers of about the same size to dir
// and returns their paths, lowest first. Stacked, they hold what the one holds.
func Split(from string, n int, dir string) (_ []string, retErr error) {
	in, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return nil, err
	}
	s := splitter{dirs: make(map[string]*tar.Header), home: make(map[string]*layerPart)}
	defer func() { retErr = errors.Join(retErr, s.close()) }()
	paths := make([]string, n)
	for i := range paths {
		paths[i] = filepath.Join(dir, fmt.Sprintf("part%d.tar", i))
		f, err := os.Create(paths[i])
		if err != nil {
			return nil, err
		}
		s.parts = append(s.parts, &layerPart{file: f, w: tar.NewWriter(f), has: make(map[string]bool)})
	}
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return paths, nil
		}
		if err != nil {
			return nil, fmt.Errorf("split %s: %w", from, err)
		}
		at, err := in.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if err := s.add(s.parts[min(int(at*int64(n)/st.Size()), n-1)], h, r); err != nil {
			return nil, fmt.Errorf("split %s: entry %s: %w", from, h.Name, err)
		}
	}
}

// splitter deals out the entries of a tar.
type splitter struct {
	parts []*layerPart
	// dirs are the directories seen so far: each layer repeats those above its
	// files, or they would get default permissions there.
	dirs map[string]*tar.Header
	// home is the layer of each file: a hard link must lie in the same one.
	home map[string]*layerPart
}

// layerPart is one of the layers while it is written.
type layerPart struct {
	file *os.File
	w    *tar.Writer
	has  map[string]bool // directories
}

func (s *splitter) add(to *layerPart, h *tar.Header, content io.Reader) error {
	name := clean(h.Name)
	switch h.Typeflag {
	case tar.TypeDir:
		s.dirs[name] = h
		return s.addDir(to, name)
	case tar.TypeLink:
		if to = s.home[clean(h.Linkname)]; to == nil {
			return fmt.Errorf("hard link to %s, which does not come before it", h.Linkname)
		}
	}
	s.home[name] = to
	if err := s.addDir(to, path.Dir(name)); err != nil {
		return err
	}
	if err := to.w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(to.w, content)
	return err
}

// addDir writes a directory and those above it, unless the layer has them.
func (s *splitter) addDir(to *layerPart, name string) error {
	h := s.dirs[name]
	if h == nil || to.has[name] {
		return nil
	}
	to.has[name] = true
	if name != "." {
		if err := s.addDir(to, path.Dir(name)); err != nil {
			return err
		}
	}
	return to.w.WriteHeader(h)
}

func (s *splitter) close() error {
	var errs []error
	for _, p := range s.parts {
		errs = append(errs, p.w.Close(), p.file.Close())
	}
	return errors.Join(errs...)
}

// clean gives the names of entries ("./etc/", "/etc", "etc") one form.
func clean(name string) string { return path.Clean(strings.TrimLeft(name, "/")) }
