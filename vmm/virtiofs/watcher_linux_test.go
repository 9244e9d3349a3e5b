package virtiofs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/internal/inotify"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/internal/settle"
)

// watching returns a watcher of a guest's share, and what tells of the changes that come next,
// until one is about a file that it makes.
func watching(t *testing.T, g *guest, dir string) (w *Watcher, changes func() []string) {
	t.Helper()
	w = NewWatcher(map[string]*Device{"m": g.dev})
	t.Cleanup(w.Close)
	n := 0
	return w, func() []string {
		t.Helper()
		n++
		end := fmt.Sprintf("end-%d", n)
		must(t, os.Symlink("-", filepath.Join(dir, end)))
		var out []string
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			c, err := w.ShareChanges(ctx)
			cancel()
			if err != nil || c.Lost > 0 || c.Tag != "m" || c.Group != g.dev.fs.mark {
				t.Fatalf("%+v, %v", c, err)
			}
			for i, e := range c.Changes {
				if e.Name == end && e.What == vmm.ShareAppeared {
					if i < len(c.Changes)-1 {
						t.Errorf("more after the end: %v", c.Changes[i:])
					}
					return out
				}
				out = append(out, tell(e))
			}
		}
	}
}

// tell writes a change down.
func tell(e vmm.ShareChange) string {
	what := map[vmm.ShareEvent]string{vmm.ShareChanged: "changed", vmm.ShareAppeared: "appeared", vmm.ShareFileGone: "gone", vmm.ShareDirGone: "directory gone"}[e.What]
	if e.Attributes {
		what = "attributes"
	}
	if e.Type != 0 {
		what += fmt.Sprintf(" %o", e.Type>>12)
	}
	return fmt.Sprintf("%s %d/%s", what, e.File, e.Name)
}

func TestWatcher(t *testing.T) {
	g, dir := newGuest(t, false)
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(path("d"), 0o755), os.WriteFile(path("d/f"), nil, 0o644), os.WriteFile(path("alone"), nil, 0o644),
		os.Mkdir(path("other"), 0o755), os.WriteFile(path("other/f"), nil, 0o644))
	d := g.lookup(rootNode, "d")
	f := g.lookup(d, "f")
	other := g.lookup(rootNode, "other")
	of := g.lookup(other, "f")
	w, changes := watching(t, g, dir)
	// The root for the end, a directory with a file in it, and a file alone.
	must(t, w.WatchShares(map[string]vmm.WatchedFiles{"m": {Nodes: []uint64{rootNode, d, f, of, 9999}}, "none": {Nodes: []uint64{1}}}))
	if len(w.watched) != 3 {
		t.Errorf("watched: %v", w.watched)
	}
	name := func(of uint64, s string) string { return fmt.Sprintf(s, of) }
	for _, tt := range []struct {
		what string
		do   func() error
		want []string
	}{
		{"write", func() error { return os.WriteFile(path("d/f"), []byte("x"), 0o644) }, []string{name(d, "changed %d/f")}},
		{"chmod", func() error { return os.Chmod(path("d/f"), 0o600) }, []string{name(d, "attributes %d/f")}},
		{"new", func() error { return os.Mkdir(path("d/new"), 0o755) }, []string{name(d, "appeared 4 %d/new")}},
		{"rmdir", func() error { return os.Remove(path("d/new")) }, []string{name(d, "directory gone %d/new")}},
		{"link", func() error { return os.Symlink("f", path("d/l")) }, []string{name(d, "appeared 12 %d/l")}},
		{"move in", func() error { return os.Rename(path("alone"), path("d/alone")) }, []string{"gone 1/alone", name(d, "appeared 10 %d/alone")}},
		{"replace", func() error { return os.Rename(path("d/alone"), path("d/f")) }, []string{name(d, "gone %d/alone"), name(d, "gone %d/f"), name(d, "appeared 10 %d/f")}},
		{"come and go", func() error { return errors.Join(os.WriteFile(path("d/t"), nil, 0o644), os.Remove(path("d/t"))) }, []string{name(d, "gone %d/t")}},
		{"alone", func() error { return os.WriteFile(path("other/f"), []byte("x"), 0o644) }, []string{name(of, "changed %d/")}},
		{"beside it", func() error { return os.WriteFile(path("other/g"), nil, 0o644) }, nil},
		{"alone gone", func() error { return os.Remove(path("other/f")) }, []string{name(other, "gone %d/f")}},
	} {
		must(t, tt.do())
		if got := changes(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
	must(t, w.WatchShares(map[string]vmm.WatchedFiles{"m": {Nodes: []uint64{rootNode}}}))
	must(t, os.WriteFile(path("d/f"), []byte("y"), 0o644))
	if got := changes(); len(got) > 0 {
		t.Errorf("not watched any more: %q", got)
	}
	w.Close()
	if err := w.WatchShares(map[string]vmm.WatchedFiles{"m": {Nodes: []uint64{rootNode}}}); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("watch after the end: %v", err)
	}
}

// What the guest does itself is not told, and what the host does after it is.
func TestWatcherKnowsItsGuest(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644), os.Mkdir(filepath.Join(dir, "d"), 0o755))
	d := g.lookup(rootNode, "d")
	w, changes := watching(t, g, dir)
	must(t, w.WatchShares(map[string]vmm.WatchedFiles{"m": {Nodes: []uint64{rootNode, d}}}))
	ask := func(opcode uint32, node uint64, body []byte) {
		t.Helper()
		if e, _ := g.ask(opcode, node, body); e != 0 {
			t.Fatalf("request %d: %v", opcode, e)
		}
	}
	f := g.lookup(rootNode, "f")
	_, h := g.open(f, unix.O_RDWR)
	if e := g.write(f, h, 0, []byte("mine")); e != 0 {
		t.Fatal(e)
	}
	if e := g.truncate(f, 2); e != 0 {
		t.Fatal(e)
	}
	ask(opSetxattr, f, pack(uint32(1), uint32(0), "user.x", []byte("1")))
	e, made, mh := g.create(rootNode, "made", everyFlag, 0o644)
	if e != 0 {
		t.Fatal(e)
	}
	if e := g.write(made, mh, 0, []byte("mine")); e != 0 {
		t.Fatal(e)
	}
	ask(opMkdir, rootNode, pack(uint64(0o755), "own"))
	ask(opRename, rootNode, pack(d, "made", "moved"))
	ask(opLink, d, pack(f, "linked"))
	ask(opSymlink, d, pack("link", "to"))
	ask(opUnlink, d, pack("link"))
	if got := changes(); len(got) > 0 {
		t.Errorf("its own doing: %q", got)
	}
	time.Sleep(10 * time.Millisecond) // the kernel's clock for files is that coarse
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("host"), 0o644), os.Remove(filepath.Join(dir, "d/moved")),
		os.WriteFile(filepath.Join(dir, "d/link"), nil, 0o644))
	want := []string{"changed 1/f", fmt.Sprintf("gone %d/moved", d), fmt.Sprintf("appeared 10 %d/link", d)}
	if got := changes(); !slices.Equal(got, want) {
		t.Errorf("the host's doing: %q, want %q", got, want)
	}
}

// Changes of which there are too many are counted.
func TestWatcherIsBounded(t *testing.T) {
	g, _ := newGuest(t, false)
	w := NewWatcher(map[string]*Device{"m": g.dev})
	for i := range settle.MaxPending + 3 {
		w.pending.Add(place{watched{"m", rootNode}, fmt.Sprint(i)}, unix.IN_DELETE)
		w.pending.Add(place{watched{"m", rootNode}, "0"}, unix.IN_DELETE)
	}
	w.note(inotify.Event{Mask: unix.IN_Q_OVERFLOW})
	total, lost := 0, 0
	for total < settle.MaxPending {
		c, err := w.ShareChanges(t.Context())
		if err != nil || len(c.Changes) > settle.MaxChanges {
			t.Fatalf("%d changes, %v", len(c.Changes), err)
		}
		total, lost = total+len(c.Changes), lost+c.Lost
	}
	if total != settle.MaxPending || lost != 4 {
		t.Errorf("%d changes, %d lost", total, lost)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if c, err := w.ShareChanges(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%+v, %v", c, err)
	}
}

// What is remembered of the guest's doings is bounded.
func TestRecentIsBounded(t *testing.T) {
	r := newOwnDoings()
	r.file(1)()
	r.name(1, "off", true)()
	if _, ok := r.ofFile(1); ok {
		t.Error("something is remembered though nobody asks")
	}
	r.on.Store(true)
	for i := range uint64(2*maxRecent + 10) {
		r.file(i)()
		r.name(i, "n", i%2 == 0)()
	}
	last := uint64(2*maxRecent + 9)
	if f, ok := r.ofFile(last); !ok || f.running != 0 || time.Since(f.at) > time.Minute {
		t.Errorf("the last file: %+v, %v", f, ok)
	}
	if n, ok := r.ofName(last, "n"); !ok || n.made {
		t.Errorf("the last name: %+v, %v", n, ok)
	}
	if _, ok := r.ofFile(0); ok {
		t.Error("the first file of so many is remembered")
	}
	done := r.file(last)
	if f, _ := r.ofFile(last); f.running != 1 {
		t.Errorf("while it runs: %+v", f)
	}
	done()
}

// Requests of the share's own groups are answered, and nothing is done.
func TestPretences(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		g, dir := newGuest(t, readOnly)
		must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("text"), 0o644), os.Mkdir(filepath.Join(dir, "d"), 0o755))
		f := g.lookup(rootNode, "f")
		before, err := os.Stat(filepath.Join(dir, "f"))
		must(t, err)
		as := func(what vmm.ShareEvent, opcode uint32, node uint64, body []byte) (unix.Errno, []byte) {
			g.gid = g.dev.fs.mark + uint32(what)
			defer func() { g.gid = uint32(os.Getgid()) }()
			return g.ask(opcode, node, body)
		}
		want := func(what string, e, want unix.Errno) {
			t.Helper()
			if e != want {
				t.Errorf("%s: %v, want %v", what, e, want)
			}
		}
		e, _ := as(vmm.ShareAppeared, opLookup, rootNode, pack("f"))
		want("look up what appears", e, unix.ENOENT)
		e, b := as(vmm.ShareAppeared, opMknod, rootNode, pack(uint32(0o100600), uint32(0), uint64(0), "f"))
		want("make what appears", e, 0)
		if nodeIn(b) != f || mode(b) != 0o100644 {
			t.Errorf("node %d, mode %o", nodeIn(b), mode(b))
		}
		e, _ = as(vmm.ShareAppeared, opMkdir, rootNode, pack(uint64(0o700), "none"))
		want("make what is not there", e, unix.ENOENT)
		e, _ = as(vmm.ShareAppeared, opMknod, rootNode, pack(uint32(0o100600), uint32(0), uint64(0), "../outside"))
		want("make what is outside", e, unix.EINVAL)
		e, b = as(vmm.ShareFileGone, opLookup, rootNode, pack("f"))
		want("look up what is gone", e, 0)
		if nodeIn(b) != f {
			t.Errorf("node %d, want %d", nodeIn(b), f)
		}
		e, b = as(vmm.ShareDirGone, opLookup, rootNode, pack("never"))
		want("look up a directory that is gone", e, 0)
		if mode(b)&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("mode %o", mode(b))
		}
		e, _ = g.open(nodeIn(b), 0)
		want("open it", e, unix.ESTALE)
		g.forget(nodeIn(b), 1)
		e, _ = as(vmm.ShareFileGone, opUnlink, rootNode, pack("f"))
		want("unlink", e, 0)
		e, _ = as(vmm.ShareDirGone, 11, rootNode, pack("d"))
		want("rmdir", e, 0)
		body := make([]byte, 88)
		body[0] = 1 << 5 // FATTR_MTIME
		e, _ = as(vmm.ShareChanged, opSetattr, f, body)
		want("touch", e, 0)
		after, err := os.Stat(filepath.Join(dir, "f"))
		must(t, err)
		if list, err := os.ReadDir(dir); err != nil || len(list) != 2 || !os.SameFile(before, after) || before.ModTime() != after.ModTime() {
			t.Errorf("something was done: %v, %v, %v", list, before.ModTime(), after.ModTime())
		}
		// One group further none is meant.
		e, _ = as(vmm.ShareEvents, opLookup, rootNode, pack("f"))
		want("another group", e, 0)
	}
}
