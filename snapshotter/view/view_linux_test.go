package view

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/ext4"
)

// image makes an image of a layer whose tree is in the directory dir.
func image(t *testing.T, path, dir string, entries ...tar.Header) {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(content))
		}
		h.ModTime = time.Unix(1700000000, 0)
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write([]byte(content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := ext4.NewLayerWriter(f, ext4.LayerOptions{Root: dir})
	if err := w.ReadTar(t.Context(), bufio.NewReader(&b)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(sha256.Sum256([]byte(path))); err != nil {
		t.Fatal(err)
	}
}

// file and others make entries; a file's content is in Linkname.
func file(name, content string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content, Mode: mode, Uid: 1000, Gid: 2000,
		PAXRecords: map[string]string{"SCHILY.xattr.user.of": name}}
}

func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}
}

// serve shows the snapshots of root, and ends with the test.
func serve(t *testing.T, root string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("the view is mounted: run these tests as root")
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- Serve(ctx, root, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if IsMounted(root) {
			t.Error("still mounted")
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
}

// snapshots makes a root with one snapshot, "1", that has two layers and a writable image.
func snapshots(t *testing.T) (root, writable string) {
	t.Helper()
	root = t.TempDir()
	d := filepath.Join(root, "snapshots", "1")
	if err := os.MkdirAll(filepath.Join(d, manifest.FacadeDir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d, manifest.FacadeDir, "etc", "passwd"), []byte("facade"), 0o644); err != nil {
		t.Fatal(err)
	}
	low, high := filepath.Join(root, "low"), filepath.Join(root, "high")
	writable = filepath.Join(d, "rw.img")
	image(t, low, manifest.LayerRoot, dir("etc"), file("etc/passwd", "low", 0o644), file("etc/gone", "low", 0o644), dir("old"), file("old/file", "low", 0o644),
		tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "etc/passwd", Mode: 0o777},
		file("one", "linked", 0o4755), tar.Header{Typeflag: tar.TypeLink, Name: "two", Linkname: "one"})
	image(t, high, manifest.LayerRoot, dir("etc"), file("etc/.wh.gone", "", 0o644), file("etc/new", "high", 0o600))
	image(t, writable, api.UpperDir, dir("etc"), file("etc/passwd", "written", 0o644), file(".wh.old", "", 0))
	m := manifest.Manifest{
		Layers:   []manifest.Layer{{Path: low, FSType: "ext4"}, {Path: high, FSType: "ext4"}},
		Writable: &manifest.Writable{Path: writable, FSType: "ext4"},
	}
	if err := manifest.Write(d, m); err != nil {
		t.Fatal(err)
	}
	return root, writable
}

func TestView(t *testing.T) {
	root, _ := snapshots(t)
	serve(t, root)
	// As clients see it.
	at := t.TempDir()
	if err := unix.Mount(filepath.Join(Dir(root), "1"), at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	var names []string
	err := filepath.WalkDir(at, func(path string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(at, path)
		names = append(names, rel)
		return err
	})
	want := []string{".", "etc", "etc/new", "etc/passwd", "link", "one", "two"}
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%v: files %q, not %q", err, names, want)
	}
	for name, want := range map[string]string{"etc/passwd": "written", "etc/new": "high", "link": "written", "two": "linked"} {
		if got, err := os.ReadFile(filepath.Join(at, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	var one, two, st unix.Stat_t
	if err := errors.Join(unix.Lstat(at+"/one", &one), unix.Lstat(at+"/two", &two), unix.Lstat(at+"/etc/new", &st)); err != nil {
		t.Fatal(err)
	}
	if one.Ino != two.Ino || one.Nlink != 2 || one.Mode != unix.S_IFREG|0o4755 || one.Uid != 1000 || one.Gid != 2000 {
		t.Errorf("one %+v, two %+v", one, two)
	}
	if st.Ino == one.Ino || st.Mtim.Sec != 1700000000 || st.Mode != unix.S_IFREG|0o600 {
		t.Errorf("etc/new %+v", st)
	}
	b := make([]byte, 64)
	if n, err := unix.Lgetxattr(at+"/one", "user.of", b); err != nil || string(b[:n]) != "one" {
		t.Errorf("extended attribute %q, %v", b[:max(n, 0)], err)
	}
	if err := os.WriteFile(at+"/etc/passwd", nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write: %v", err)
	}
	if list, err := os.ReadDir(Dir(root)); err != nil || len(list) > 0 {
		t.Errorf("snapshots: %v, %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(Dir(root), "2")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such snapshot: %v", err)
	}
}

// While a machine runs on a snapshot, its files cannot be read, but users can be looked up.
func TestRunning(t *testing.T) {
	root, writable := snapshots(t)
	serve(t, root)
	at := filepath.Join(Dir(root), "1")
	if got, err := os.ReadFile(at + "/etc/passwd"); err != nil || string(got) != "written" {
		t.Fatalf("%q, %v", got, err)
	}
	f, err := os.OpenFile(writable, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// As QEMU does.
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: lockStart, Len: 4}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	recover := func(on byte) {
		t.Helper()
		var b [1]byte
		if _, err := f.ReadAt(b[:], incompatAt); err != nil {
			t.Fatal(err)
		}
		b[0] = b[0]&^incompatRecover | on
		if _, err := f.WriteAt(b[:], incompatAt); err != nil {
			t.Fatal(err)
		}
	}
	recover(incompatRecover)
	if _, err := os.ReadDir(at); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("list of files: %v", err)
	}
	if _, err := os.ReadFile(at + "/one"); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("a file: %v", err)
	}
	time.Sleep(1100 * time.Millisecond) // names are kept for a second
	if got, err := os.ReadFile(at + "/etc/passwd"); err != nil || string(got) != "facade" {
		t.Errorf("/etc/passwd: %q, %v", got, err)
	}
	// It is paused: its file system is frozen.
	recover(0)
	time.Sleep(1100 * time.Millisecond)
	if got, err := os.ReadFile(at + "/etc/passwd"); err != nil || string(got) != "written" {
		t.Errorf("/etc/passwd of a paused container: %q, %v", got, err)
	}
}

// What a process that was killed has left does not keep the next from serving.
func TestServeAfterCrash(t *testing.T) {
	root, _ := snapshots(t)
	if err := os.Mkdir(Dir(root), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", Dir(root), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if IsMounted(root) {
		t.Error("a tmpfs is taken for a view")
	}
	serve(t, root)
	if !IsMounted(root) {
		t.Error("not mounted")
	}
}
