package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/internal/inotify"
)

// Events are raised for what others have done, not for what the container has, and nothing is changed.
func TestRaisePathEvents(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string) {
		t.Helper()
		if err := os.WriteFile(at(name), []byte("text"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"f", "theirs", "later"} {
		write(f)
	}
	for _, err := range []error{os.Mkdir(at("sub"), 0o750), os.Chmod(at("f"), 0o4755), os.Symlink("f", at("link")), os.Mkdir(at("sub/deep"), 0o755), unix.Mkfifo(at("fifo"), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	mount, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer mount.Close()
	watch := func() *inotify.Instance {
		n, err := inotify.Open()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	listener := watch()
	defer listener.Close()
	c := &container{id: "c", shares: []share{{tag: "m", path: dir}}, appeared: make(chan struct{}, 1), watches: newPathWatches()}
	defer c.watches.close()
	own := watch()
	wd, err := own.Add(int(mount.Fd()), ownEvents)
	if err != nil {
		t.Fatal(err)
	}
	n := watchedNode{"m", 1}
	c.watches.notify, c.watches.nodes[wd], c.watches.wds[n], c.watches.paths[n] = own, n, wd, "."

	before := treeState(t, dir)
	if _, err := listener.Add(int(mount.Fd()), unix.IN_ALL_EVENTS&^(unix.IN_OPEN|unix.IN_ACCESS|unix.IN_CLOSE)); err != nil {
		t.Fatal(err)
	}
	raise := func(paths ...string) (out []string) {
		t.Helper()
		req := &guestv1.RaiseFileEventsRequest{Share: "m"}
		for _, p := range paths {
			req.Changed = append(req.Changed, []byte(p))
		}
		if err := c.raiseFileEvents(req); err != nil {
			t.Fatal(err)
		}
		list, err := listener.TryRead(make([]byte, 64<<10))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			what := fmt.Sprintf("%#x", e.Mask&^unix.IN_ISDIR)
			if e.Mask&^unix.IN_ISDIR == unix.IN_ATTRIB {
				what = "attrib"
			}
			out = append(out, what+" "+e.Name)
		}
		return out
	}
	for path, want := range map[string]string{
		"f": "attrib f", "sub": "attrib sub", ".": "attrib ", "gone": "attrib ", "link": "attrib ", "fifo": "attrib ", "f/x": "attrib f", "link/x": "", "sub/deep": "",
	} {
		if got := strings.Join(raise(path), ", "); got != want && (want != "" || got != "") {
			t.Errorf("%s: raised %q, want %q", path, got, want)
		}
	}
	if after := treeState(t, dir); !slices.Equal(after, before) {
		t.Errorf("the files were\n%q\nand are\n%q", before, after)
	}

	// The container's own: its events are only those of what it did.
	write("mine")
	if err := os.Remove(at("theirs")); err != nil {
		t.Fatal(err)
	}
	if got := raise("mine", "theirs"); slices.Contains(got, "attrib mine") || slices.Contains(got, "attrib ") {
		t.Errorf("what the container did was raised again: %q", got)
	}
	// It had changed the file, but somebody else has since.
	c.watches.touched.Set(sharePlace{"m", "later"}, time.Now().Add(-2*ownWithin))
	if err := os.Chmod(at("later"), 0o600); err != nil { // the time of the last change of status
		t.Fatal(err)
	}
	_, _ = listener.TryRead(make([]byte, 64<<10))
	if got := raise("later"); !slices.Equal(got, []string{"attrib later"}) {
		t.Errorf("somebody else's change: %q", got)
	}
	c.watches.touched.Set(sharePlace{"m", "gone"}, time.Now().Add(-2*ownGoneFor))
	if got := raise("gone"); !slices.Equal(got, []string{"attrib "}) {
		t.Errorf("what somebody else has removed: %q", got)
	}

	for _, bad := range []string{"", "..", "../x", "/etc", "a//b", "./a", "a\x00", strings.Repeat("n", unix.PathMax)} {
		if err := c.raiseFileEvents(&guestv1.RaiseFileEventsRequest{Share: "m", Changed: [][]byte{[]byte(bad)}}); err == nil || !strings.Contains(err.Error(), "is no path in a share") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if err := c.raiseFileEvents(&guestv1.RaiseFileEventsRequest{Share: "m", Changed: make([][]byte, api.MaxFileEvents+1)}); err == nil {
		t.Error("too many are taken")
	}
}

// treeState are the files in a directory, with what must not change.
func treeState(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		out = append(out, fmt.Sprint(name, fi.Mode(), fi.Size(), fi.ModTime()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The answer's paths are bounded, each is there once, and only what changes them changes its digest.
func TestWatchedPathsAreBounded(t *testing.T) {
	w := newPathWatches()
	files := map[string]map[uint64]bool{"m": {}}
	add := func(node uint64, p string) {
		files["m"][node] = true
		w.paths[watchedNode{"m", node}] = p
	}
	ask := func() *guestv1.WaitWatchesResponse {
		t.Helper()
		r, err := watchesResponse(files)
		if err != nil {
			t.Fatal(err)
		}
		w.digest, w.looked = r.Digest, time.Now()
		if r, err = w.response(files, nil); err != nil {
			t.Fatal(err)
		}
		return r
	}
	add(1, "b")
	add(2, "a")
	add(3, "a")
	files["m"][4] = true // cannot be named
	r := ask()
	if len(r.Shares) != 1 || len(r.Shares[0].Paths) != 2 || string(r.Shares[0].Paths[0]) != "a" || len(r.Shares[0].Files) != 0 || r.Cut {
		t.Errorf("%v", r)
	}
	if again := ask(); again.Digest != r.Digest {
		t.Error("another digest of the same")
	}
	add(3, "c")
	if other := ask(); other.Digest == r.Digest {
		t.Error("the same digest of something else")
	}
	for i := range uint64(api.MaxWatchedPaths/1000 + 5) {
		add(10+i, fmt.Sprintf("%01000d", i))
	}
	r, n := ask(), 0
	for _, p := range r.Shares[0].Paths {
		n += len(p)
	}
	if n > api.MaxWatchedPaths || n < api.MaxWatchedPaths-1000 || !r.Cut {
		t.Errorf("%d bytes of paths, cut: %v", n, r.Cut)
	}
}
