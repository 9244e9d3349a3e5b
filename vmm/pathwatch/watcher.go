package pathwatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/applevm/applevm/internal/recent"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/internal/settle"
)

const (
	// maxWatched is how many files of the host are watched for one machine.
	maxWatched = 32 << 10
	// maxPath is the longest path in a share, in bytes (Linux's PATH_MAX).
	maxPath = 4096
	// maxTold is of how many places it is remembered what was told, and toldFor for how long at the
	// least. A place that is forgotten is told of once more.
	maxTold = 64 << 10
	toldFor = time.Hour
)

// Watcher watches the shares of one machine.
type Watcher struct {
	shares map[string]*share
	source func() (source, error)

	mu      sync.Mutex
	src     source // nil until something is watched
	closed  bool
	pending *settle.Queue[place]
	told    recent.Memory[place, state]
	done    chan struct{} // closed by Close
}

// share is a directory, or some files, that a machine shares.
type share struct {
	vmm.Share
	root    *os.Root
	real    string          // Path without symbolic links; empty until something is watched
	watched map[string]bool // by their paths in the share
}

// place is a path in a share.
type place struct{ tag, path string }

// state is what is compared of a file.
type state struct {
	file  os.FileInfo // nil if there is none; only to be compared by os.SameFile
	size  int64
	mtime time.Time
}

// New returns a watcher for a machine's shares. It takes nothing of the host until something is watched.
func New(shares []vmm.Share) *Watcher { return newWatcher(shares, newSource) }

func newWatcher(shares []vmm.Share, src func() (source, error)) *Watcher {
	w := &Watcher{
		shares: map[string]*share{}, source: src, pending: settle.New[place](),
		told: recent.Memory[place, state]{For: toldFor, Max: maxTold}, done: make(chan struct{}),
	}
	for _, s := range shares {
		w.shares[s.Tag] = &share{Share: s}
	}
	return w
}

// WatchesPaths implements vmm.ShareWatcher.
func (w *Watcher) WatchesPaths() bool { return true }

// WatchShares implements vmm.ShareWatcher. The guest names the paths.
func (w *Watcher) WatchShares(files map[string]vmm.WatchedFiles) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return vmm.ErrNotRunning
	}
	var errs []error
	places, n := map[string][]string{}, 0
	for tag, s := range w.shares {
		s.watched = map[string]bool{}
		paths := files[tag].Paths
		switch {
		case len(paths) == 0:
			continue
		case s.ReadOnly:
			errs = append(errs, fmt.Errorf("%s is shared read-only, and the guest cannot raise events there", s.name()))
			continue
		}
		if err := s.open(); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, p := range paths {
			if !valid(p) {
				continue
			}
			if n++; n > maxWatched {
				errs = append(errs, fmt.Errorf("the guest watches more than %d files", maxWatched))
				break
			}
			s.watched[p] = true
		}
		for p := range s.watched {
			if p != "." && s.watched[path.Dir(p)] && !s.look(p).isDir() {
				continue // its directory tells of it
			}
			if root, abs, ok := s.locate(p); ok {
				places[root] = append(places[root], abs)
			}
		}
	}
	if w.src == nil {
		if len(places) == 0 {
			return errors.Join(errs...)
		}
		src, err := w.source()
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		w.src = src
		go w.listen(src)
	}
	return errors.Join(append(errs, w.src.watch(places))...)
}

// valid tells whether a path can be one in a share.
func valid(p string) bool {
	return len(p) <= maxPath && filepath.IsLocal(p) && path.Clean(p) == p && !strings.ContainsRune(p, 0)
}

func (s *share) name() string {
	if s.Path == "" {
		return strings.Join(s.Files, ", ")
	}
	return s.Path
}

// open opens the share's directory, if it is one.
func (s *share) open() (err error) {
	if s.real != "" || s.Path == "" {
		return nil
	}
	if s.real, err = filepath.EvalSymlinks(s.Path); err != nil {
		return err
	}
	if s.root, err = os.OpenRoot(s.real); err != nil {
		s.real = ""
	}
	return err
}

// locate returns where a path in the share is on the host, and below which directory.
func (s *share) locate(p string) (root, abs string, ok bool) {
	if s.Path != "" {
		return s.real, filepath.Join(s.real, p), true
	}
	i, err := strconv.Atoi(p)
	if err != nil || i < 0 || i >= len(s.Files) {
		return "", "", false
	}
	abs, err = filepath.EvalSymlinks(s.Files[i])
	return filepath.Dir(abs), abs, err == nil
}

// paths returns which places in the share a path of the host's is, as far as they are watched.
func (s *share) paths(abs string) (out []string) {
	if s.Path == "" {
		for p := range s.watched {
			if _, file, ok := s.locate(p); ok && file == abs {
				out = append(out, p)
			}
		}
		return out
	}
	p, err := filepath.Rel(s.real, abs)
	if err != nil || s.real == "" || !filepath.IsLocal(p) {
		return nil
	}
	if s.watched[p] || p != "." && s.watched[path.Dir(p)] {
		out = append(out, p)
	}
	return out
}

// look returns the state of a place. Links do not lead out of the share.
func (s *share) look(p string) state {
	var fi os.FileInfo
	var err error
	if s.Path == "" {
		if _, abs, ok := s.locate(p); ok {
			fi, err = os.Lstat(abs)
		}
	} else {
		fi, err = s.root.Lstat(p)
	}
	switch {
	case err != nil || fi == nil:
		return state{}
	case fi.Mode()&fs.ModeType != 0:
		return state{file: fi} // what is in a directory is told of by itself
	}
	return state{fi, fi.Size(), fi.ModTime()}
}

func (a state) isDir() bool { return a.file != nil && a.file.IsDir() }

// same tells whether nothing but attributes can have changed.
func (a state) same(b state) bool {
	if a.file == nil || b.file == nil {
		return a.file == nil && b.file == nil
	}
	return os.SameFile(a.file, b.file) && a.file.Mode().Type() == b.file.Mode().Type() && a.size == b.size && a.mtime.Equal(b.mtime)
}

// listen takes hints until w is closed.
func (w *Watcher) listen(src source) {
	for {
		var hint string
		select {
		case <-w.done:
			return
		case hint = <-src.hints():
		}
		w.mu.Lock()
		if hint == "" {
			w.pending.Lose()
		}
		for tag, s := range w.shares {
			for _, p := range s.paths(hint) {
				w.pending.Add(place{tag, p}, 0)
			}
		}
		w.mu.Unlock()
		w.pending.Wake()
	}
}

// ShareChanges implements vmm.ShareWatcher.
func (w *Watcher) ShareChanges(ctx context.Context) (out vmm.ShareChanges, err error) {
	err = w.pending.Wait(ctx, func() (bool, time.Time) {
		var next time.Time
		out, next = w.take()
		return len(out.Paths) > 0 || out.Lost > 0, next
	})
	return out, err
}

// take takes changes of one share that are due, and tells when the next is, if one is.
func (w *Watcher) take() (out vmm.ShareChanges, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out.Lost, next = w.pending.Take(func(p place, _ uint32) bool {
		if out.Tag != "" && p.tag != out.Tag || len(out.Paths) >= settle.MaxChanges {
			return false
		}
		is := w.shares[p.tag].look(p.path)
		if was, ok := w.told.Get(p); ok && was.same(is) {
			return true
		}
		w.told.Set(p, is)
		out.Tag = p.tag
		out.Paths = append(out.Paths, p.path)
		return true
	})
	return out, next
}

// Close ends the watching.
func (w *Watcher) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	close(w.done)
	if w.src != nil {
		w.src.close()
	}
	for _, s := range w.shares {
		if s.root != nil {
			_ = s.root.Close()
		}
	}
}
