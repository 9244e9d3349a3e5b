package virtiofs

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
)

// A guest that is given files gets these, and nothing of the directories that they are
// in, whatever it asks for.
func TestFilesAlone(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, os.WriteFile(a, []byte("one"), 0o644), os.WriteFile(b, []byte("two"), 0o644),
		os.WriteFile(filepath.Join(dir, "sibling"), []byte("secret"), 0o644), os.Symlink("b", filepath.Join(dir, "link")))
	dev, err := New(vmm.Share{Files: []string{a, filepath.Join(dir, "link")}}, func(err error) { t.Error(err) })
	must(t, err)
	g := &guest{t: t, dev: dev, uid: uint32(os.Getuid()), gid: uint32(os.Getgid())}
	if e, _ := g.ask(opInit, 0, pack(uint32(7), uint32(31), uint32(0), uint32(0))); e != 0 {
		t.Fatal(e)
	}
	for name, want := range map[string]string{"0": "one", "1": "two"} {
		n := g.lookup(rootNode, name)
		e, h := g.open(n, unix.O_RDWR)
		if e != 0 {
			t.Fatal(e)
		}
		if e, b := g.read(n, h, 0, 10); e != 0 || string(b) != want {
			t.Errorf("%s has %q, %v", name, b, e)
		}
		if e := g.write(n, h, 0, []byte("new")); e != 0 {
			t.Error(e)
		}
		if e, _ := g.ask(opLookup, n, pack("sibling")); e != unix.ENOTDIR {
			t.Errorf("look up in a file: %v", e)
		}
		if e, _ := g.ask(opLink, rootNode, pack(n, "x")); e == 0 {
			t.Error("a hard link was made")
		}
	}
	for _, name := range []string{"sibling", "a", "b", "link", "2", "-1", "00"} {
		if e, out := g.ask(opLookup, rootNode, pack(name)); e != 0 || nodeIn(out) != 0 {
			t.Errorf("look up %s: %v", name, e)
		}
	}
	for _, name := range []string{"..", ".", "0/../sibling"} {
		if e, _ := g.ask(opLookup, rootNode, pack(name)); e != unix.EINVAL {
			t.Errorf("look up %s: %v", name, e)
		}
	}
	for what, ask := range map[string]func() syscall.Errno{
		"create":  func() syscall.Errno { e, _, _ := g.create(rootNode, "new", everyFlag, 0o644); return e },
		"mkdir":   func() syscall.Errno { e, _ := g.ask(opMkdir, rootNode, pack(uint64(0o755), "new")); return e },
		"symlink": func() syscall.Errno { e, _ := g.ask(opSymlink, rootNode, pack("new", "to")); return e },
		"unlink":  func() syscall.Errno { e, _ := g.ask(opUnlink, rootNode, pack("0")); return e },
		"rename":  func() syscall.Errno { e, _ := g.ask(opRename, rootNode, pack(uint64(rootNode), "0", "2")); return e },
	} {
		if e := ask(); e != unix.ENOENT {
			t.Errorf("%s: %v", what, e)
		}
	}
	_, b2 := g.ask(opOpendir, rootNode, pack(uint64(0)))
	if e, list := g.ask(opReaddirplus, rootNode, pack(nodeIn(b2), uint64(0), uint32(4096), uint32(0), uint64(0), uint64(0))); e != unix.ENOENT || len(list) > 0 {
		t.Errorf("list: %q, %v", list, e)
	}
	must(t, dev.Close())
	if dev.fs.open != 0 {
		t.Errorf("%d descriptors are open", dev.fs.open)
	}
	for path, want := range map[string]string{a: "new", b: "new", filepath.Join(dir, "sibling"): "secret"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s has %q, %v", path, got, err)
		}
	}
	for _, bad := range []string{dir, filepath.Join(dir, "missing"), "/dev/null"} {
		if dev, err := New(vmm.Share{Files: []string{a, bad}, ReadOnly: true}, nil); err == nil {
			_ = dev.Close()
			t.Errorf("%s is shared as a file", bad)
		}
	}
}
