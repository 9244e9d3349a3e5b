package virtiofs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// short is ask with room for a short answer, as a guest gives it, and quicker.
func (g *guest) short(opcode uint32, node uint64, body []byte) (syscall.Errno, []byte) {
	g.t.Helper()
	return g.raw(g.request(opcode, node, body), 4096)
}

func (g *guest) getattr(node uint64) syscall.Errno {
	g.t.Helper()
	e, _ := g.short(opGetattr, node, make([]byte, 16))
	return e
}

// walkAll looks many files up in a directory of their own, and forgets none.
func (g *guest) walkAll(dir, prefix string, files int) (nodes []uint64) {
	g.t.Helper()
	const each = 1000
	for i := range files {
		sub := fmt.Sprint(prefix, i/each)
		if i%each == 0 {
			must(g.t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
		}
		// One file by many names would be one node: these are not.
		must(g.t, syscall.Mknod(filepath.Join(dir, sub, fmt.Sprint(i)), unix.S_IFREG|0o644, 0))
	}
	var d uint64
	for i := range files {
		if i%each == 0 {
			d = g.lookup(rootNode, fmt.Sprint(prefix, i/each))
		}
		e, b := g.short(opLookup, d, pack(fmt.Sprint(i)))
		if e != 0 {
			g.t.Fatal(e)
		}
		nodes = append(nodes, nodeIn(b))
	}
	return nodes
}

// A guest may know many more files than the host has descriptors for.
func TestManyFiles(t *testing.T) {
	g, dir := newGuest(t, false)
	if g.dev.fs.maxAwake > maxAwake {
		t.Errorf("%d descriptors are kept, more than %d", g.dev.fs.maxAwake, maxAwake)
	}
	const files = 5000
	g.dev.fs.maxAwake = files / 20 // as 8192 are to 160,000 files
	nodes := g.walkAll(dir, "many", files)
	if open := g.dev.fs.open; open > files/20+1 {
		t.Errorf("%d descriptors are open for %d files", open, files)
	}
	for i, n := range nodes {
		if i%100 == 0 {
			if e := g.getattr(n); e != 0 {
				t.Fatalf("file %d: %v", i, e)
			}
		}
	}
	for _, n := range nodes {
		_, _ = g.short(opForget, n, pack(uint64(1))) // it has no answer
	}
	if n := len(g.dev.fs.nodes); n != 1+(files+999)/1000 {
		t.Errorf("%d files are known after the guest has forgotten them", n)
	}
}

// What becomes of files that sleep.
func TestSleep(t *testing.T) {
	g, dir := newGuest(t, false)
	g.dev.fs.maxAwake = 8
	at := func(name string) string { return filepath.Join(dir, "d", name) }
	must(t, os.MkdirAll(at("sub"), 0o755), os.Mkdir(filepath.Join(dir, "e"), 0o755))
	d := g.lookup(rootNode, "d")
	e := g.lookup(rootNode, "e")
	sub := g.lookup(d, "sub")
	nodes := map[string]uint64{}
	for _, name := range []string{"still", "moved", "exchanged", "removed", "replaced", "linked", "open", "gone"} {
		must(t, os.WriteFile(at(name), []byte(name), 0o644))
		nodes[name] = g.lookup(d, name)
	}
	must(t, os.WriteFile(at("sub/deep"), []byte("deep"), 0o644))
	nodes["deep"] = g.lookup(sub, "deep")
	errno, open := g.open(nodes["open"], unix.O_RDONLY)
	if errno != 0 {
		t.Fatal(errno)
	}
	g.walkAll(dir, "first", 50)
	// The guest moves some, others remove and replace some.
	for _, r := range []struct {
		from     uint64
		old, new string
		flags    uint32
	}{
		{d, "moved", "other", 0}, {d, "exchanged", "sub", unix.RENAME_EXCHANGE}, {d, "linked", "name", 0},
	} {
		to := e
		if r.flags != 0 {
			to = d
		}
		if errno, _ := g.ask(opRename2, r.from, pack(to, r.flags, uint32(0), r.old, r.new)); errno != 0 {
			t.Fatalf("%s: %v", r.old, errno)
		}
	}
	if errno, _ := g.ask(opUnlink, d, pack("open")); errno != 0 {
		t.Fatal(errno)
	}
	must(t, os.Remove(at("removed")), os.Rename(at("gone"), at("away")), os.Remove(at("replaced")), syscall.Mkfifo(at("replaced"), 0o644))
	g.walkAll(dir, "second", 50)
	// A parent that the guest has forgotten is no obstacle.
	g.forget(sub, 1)
	for name, want := range map[string]syscall.Errno{
		"still": 0, "moved": 0, "exchanged": 0, "linked": 0, "open": 0, "deep": 0,
		"removed": unix.ESTALE, "gone": unix.ESTALE, "replaced": unix.ESTALE,
	} {
		if got := g.getattr(nodes[name]); got != want {
			t.Errorf("attributes of %s: %v, want %v", name, got, want)
		}
		if want != 0 || name == "open" {
			continue
		}
		errno, h := g.open(nodes[name], unix.O_RDONLY)
		if errno != 0 {
			t.Errorf("open %s: %v", name, errno)
			continue
		}
		if errno, b := g.read(nodes[name], h, 0, 100); errno != 0 || string(b) != name {
			t.Errorf("%s: %q, %v", name, b, errno)
		}
	}
	if errno, b := g.read(nodes["open"], open, 0, 100); errno != 0 || string(b) != "open" {
		t.Errorf("the open file: %q, %v", b, errno)
	}
	// One that was moved by others is found where it is.
	if n := g.lookup(d, "away"); n != nodes["gone"] || g.getattr(n) != 0 {
		t.Errorf("the moved file has the number %d, and had %d", n, nodes["gone"])
	}
}

// What the host keeps to find a file again counts among what the guest made it remember.
func TestForgottenParentsCount(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b", "c"), 0o755), os.Mkdir(filepath.Join(dir, "e"), 0o755))
	known := func(when string, want int) {
		t.Helper()
		if got := len(g.dev.fs.nodes); got != want {
			t.Errorf("%s: %d files are known, want %d", when, got, want)
		}
	}
	a := g.lookup(rootNode, "a")
	b := g.lookup(a, "b")
	c := g.lookup(b, "c")
	e := g.lookup(rootNode, "e")
	g.forget(a, 1)
	g.forget(b, 1)
	known("the parents are forgotten", 5)
	if again := g.lookup(rootNode, "a"); again != a {
		t.Errorf("a had the number %d, and has %d", a, again)
	}
	g.forget(a, 1)
	if errno, _ := g.ask(opRename2, b, pack(e, uint32(0), uint32(0), "c", "c")); errno != 0 {
		t.Fatal(errno)
	}
	known("the file has moved away from them", 3)
	g.forget(e, 1)
	known("the new parent is forgotten", 3)
	if got := g.getattr(c); got != 0 {
		t.Error(got)
	}
	g.forget(c, 1)
	known("all is forgotten", 1)
	if g.dev.fs.open != 1 || g.dev.fs.root.children != 0 {
		t.Errorf("%d descriptors, %d files below the root", g.dev.fs.open, g.dev.fs.root.children)
	}
}

// Directories that others have moved into each other lead nowhere.
func TestSleepInACircle(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	a := g.lookup(rootNode, "a")
	b := g.lookup(a, "b")
	must(t, os.Rename(filepath.Join(dir, "a", "b"), filepath.Join(dir, "b")), os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b", "a")))
	if again := g.lookup(b, "a"); again != a {
		t.Fatalf("numbers %d and %d", again, a)
	}
	g.dev.fs.maxAwake = 2
	g.walkAll(dir, "x", 10)
	if e := g.getattr(a); e != unix.ESTALE {
		t.Errorf("a directory in a circle: %v", e)
	}
	if n := g.lookup(rootNode, "b"); n != b || g.getattr(a) != 0 {
		t.Error("the directories are not found again")
	}
}

// Many use and wake the same files at once.
func TestSleepOfManyUsers(t *testing.T) {
	g, dir := newGuest(t, false)
	g.dev.fs.maxAwake = 4
	nodes := g.walkAll(dir, "x", 40)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 400 {
				n := nodes[(i+j)%len(nodes)]
				if err := errno(g.dev.fs.with(n, func(n *node) error { _, err := stat(n.fd); return err })); err != nil {
					t.Errorf("%d: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
}
