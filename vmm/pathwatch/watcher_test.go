package pathwatch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/internal/settle"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, name, text string) {
	t.Helper()
	must(t, os.WriteFile(name, []byte(text), 0o644))
}

// until returns what is told until a path is.
func until(t *testing.T, w *Watcher, tag, path string) (out []string) {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		c, err := w.ShareChanges(ctx)
		cancel()
		if err != nil || c.Lost > 0 || c.Tag != tag {
			t.Fatalf("%+v, %v; before: %q", c, err, out)
		}
		if i := slices.Index(c.Paths, path); i >= 0 {
			return append(out, c.Paths[:i]...)
		}
		out = append(out, c.Paths...)
	}
}

// TestWatcher, with the host's own notifications: what is told, and what not.
func TestWatcher(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real")
	must(t, os.MkdirAll(filepath.Join(real, "sub", "deep"), 0o755), os.Symlink(real, filepath.Join(dir, "link")))
	at := func(name string) string { return filepath.Join(real, name) }
	for _, f := range []string{"a", "sub/b", "sub/deep/c"} {
		put(t, at(f), "1st")
	}
	w := New([]vmm.Share{{Tag: "m", Path: filepath.Join(dir, "link")}})
	defer w.Close()
	must(t, w.WatchShares(nil))
	must(t, w.WatchShares(map[string]vmm.WatchedFiles{"m": {Paths: []string{".", "sub", "a", "sub/deep/c", "nothing/here"}}, "none": {Paths: []string{"."}}}))
	n := 0
	told := func(want ...string) {
		t.Helper()
		n++
		end := fmt.Sprint("end-", n)
		must(t, os.Symlink("-", at(end)))
		got := until(t, w, "m", end)
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	put(t, at("a"), "2nd")
	put(t, at("sub/b"), "2nd")
	put(t, at("sub/deep/c"), "2nd")
	put(t, at("sub/deep/unwatched"), "1st")
	told("a", "sub/b", "sub/deep/c")
	must(t, os.Chmod(at("a"), 0o600), os.Chmod(at("sub/b"), 0o600))
	told() // not of attributes
	must(t, os.Remove(at("a")))
	put(t, at("sub/new"), "1st")
	told("a", "sub/new")
	put(t, at(".tmp"), "2nd")
	must(t, os.Rename(at(".tmp"), at("sub/b")))
	told(".tmp", "sub/b")
	must(t, os.Mkdir(at("dir"), 0o755))
	told("dir")
	put(t, at("dir/file"), "1st") // changes the directory's time
	told()
	must(t, w.WatchShares(map[string]vmm.WatchedFiles{"m": {Paths: []string{"."}}}))
	put(t, at("sub/b"), "3rd")
	told()
	w.Close()
	if err := w.WatchShares(nil); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// TestFiles: files that are shared alone, by their numbers.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	put(t, one, "1st")
	put(t, two, "1st")
	w := New([]vmm.Share{{Tag: "f", Files: []string{one, two}}})
	defer w.Close()
	must(t, w.WatchShares(map[string]vmm.WatchedFiles{"f": {Paths: []string{"0", "1", "2", "x"}}}))
	put(t, one, "2nd")
	if got := until(t, w, "f", "0"); len(got) > 0 {
		t.Errorf("told %q", got)
	}
	put(t, two, "2nd")
	until(t, w, "f", "1")
}

// TestReadOnly: others are watched all the same.
func TestReadOnly(t *testing.T) {
	ro, rw := t.TempDir(), t.TempDir()
	w := New([]vmm.Share{{Tag: "ro", Path: ro, ReadOnly: true}, {Tag: "rw", Path: rw}, {Tag: "gone", Path: filepath.Join(rw, "nothing")}})
	defer w.Close()
	here := vmm.WatchedFiles{Paths: []string{"."}}
	err := w.WatchShares(map[string]vmm.WatchedFiles{"ro": here, "rw": here, "gone": here})
	for _, want := range []string{ro + " is shared read-only", "nothing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	put(t, filepath.Join(rw, "f"), "")
	until(t, w, "rw", "f")
}

// hints are a source that the test is.
type hints struct {
	ch     chan string
	places map[string][]string
}

func (h *hints) watch(p map[string][]string) error { h.places = p; return nil }
func (h *hints) hints() <-chan string              { return h.ch }
func (h *hints) close()                            {}

// TestGuestsPaths: the guest names paths; none leads out, and they are bounded.
func TestGuestsPaths(t *testing.T) {
	dir := t.TempDir()
	share := filepath.Join(dir, "share")
	must(t, os.MkdirAll(share, 0o755), os.Symlink(dir, filepath.Join(share, "out")), os.Symlink("..", filepath.Join(share, "up")))
	put(t, filepath.Join(dir, "secret"), "")
	h := &hints{ch: make(chan string)}
	w := newWatcher([]vmm.Share{{Tag: "m", Path: share}}, func() (source, error) { return h, nil })
	defer w.Close()
	bad := []string{"", "..", "../secret", "/etc", "a/../..", "./x", "x/", "a//b", "n\x00", strings.Repeat("n", maxPath+1)}
	must(t, w.WatchShares(map[string]vmm.WatchedFiles{"m": {Paths: append(slices.Clone(bad), ".", "out/secret")}}))
	if got := slices.Sorted(slices.Values(h.places[w.shares["m"].real])); len(got) != 2 || len(w.shares["m"].watched) != 2 {
		t.Errorf("watched: %q", got)
	}
	if got := w.shares["m"].look("out/secret"); got.file != nil {
		t.Error("a link leads out of the share")
	}
	for _, abs := range []string{dir, filepath.Join(dir, "secret"), share + "x", "/", "relative"} {
		if got := w.shares["m"].paths(abs); len(got) > 0 {
			t.Errorf("%s is %q", abs, got)
		}
	}

	var many []string
	for i := range maxWatched + 1 {
		many = append(many, fmt.Sprint("d/", i))
	}
	if err := w.WatchShares(map[string]vmm.WatchedFiles{"m": {Paths: many}}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too many: %v", err)
	}
	if n := len(w.shares["m"].watched); n != maxWatched {
		t.Errorf("%d are watched", n)
	}
}

// TestLost: what is not taken is bounded, and that something was lost is told.
func TestLost(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	h := &hints{ch: make(chan string)}
	w := newWatcher([]vmm.Share{{Tag: "m", Path: dir}}, func() (source, error) { return h, nil })
	defer w.Close()
	must(t, w.WatchShares(map[string]vmm.WatchedFiles{"m": {Paths: []string{"."}}}))
	for i := range settle.MaxPending + 3 {
		h.ch <- filepath.Join(dir, fmt.Sprint(i))
	}
	h.ch <- ""
	h.ch <- "/nowhere" // the one before has been taken
	total, lost := 0, 0
	for total < settle.MaxPending {
		c, err := w.ShareChanges(t.Context())
		must(t, err)
		if len(c.Paths) > settle.MaxChanges {
			t.Errorf("%d at once", len(c.Paths))
		}
		total += len(c.Paths)
		lost += c.Lost
	}
	if total != settle.MaxPending || lost < 4 {
		t.Errorf("%d told, %d lost", total, lost)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if c, err := w.ShareChanges(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%+v, %v", c, err)
	}
}
