package ext4

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// populate makes files of every kind in dir with system calls.
func populate(t testing.TB, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	must(os.MkdirAll(path("a/b/c"), 0o755))
	must(os.WriteFile(path("small"), []byte("small"), 0o640))
	must(os.WriteFile(path("a/big"), bytes.Repeat([]byte("0123456789abcdef"), 200_000), 0o644))
	must(os.Link(path("a/big"), path("a/b/hard")))
	must(os.Symlink("a/big", path("short")))
	must(os.Symlink(strings.Repeat("long/", 100), path("long")))
	must(unix.Mknod(path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(path("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(300, 70000))))
	must(unix.Mkfifo(path("fifo"), 0o600))
	must(unix.Setxattr(path("small"), "user.a", []byte("1"), 0))
	must(unix.Setxattr(path("small"), "trusted.b", bytes.Repeat([]byte("2"), 500), 0))
	must(unix.Setxattr(path("small"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(unix.Setxattr(path("a"), "system.posix_acl_default",
		[]byte(aclValue(aclUserObj, 7, aclNoID, aclUser, 4, 5, aclGroupObj, 5, aclNoID, aclMask, 7, aclNoID, aclOther, 0, aclNoID)), 0))
	must(os.Lchown(path("small"), 70000, 80000))
	must(os.Chtimes(path("a/big"), time.Unix(-3, 5), time.Unix(1<<31-9, 6)))
	// A file of very many pieces, and one with blocks that were never written.
	f, err := os.Create(path("pieces"))
	must(err)
	for i := range 2000 {
		_, err := f.WriteAt([]byte{byte(i), 1}, int64(i)*3*blockSize)
		must(err)
	}
	must(f.Truncate(1 << 32))
	must(f.Truncate(20 << 20))
	must(f.Close())
	// Many entries, long names, and some removed again.
	must(os.Mkdir(path("many"), 0o755))
	for i := range 3000 {
		must(os.WriteFile(path(fmt.Sprintf("many/%s-%d", strings.Repeat("m", i%200), i)), nil, 0o600))
	}
	for i := 0; i < 3000; i += 3 {
		must(os.Remove(path(fmt.Sprintf("many/%s-%d", strings.Repeat("m", i%200), i))))
	}
}

// readerAgrees mounts an image and compares the reader's view with the kernel's.
func readerAgrees(t *testing.T, image string) map[string]observed {
	t.Helper()
	got := observeReader(t, openImage(t, image), ".")
	dir := mount(t, image, "ro")
	want := observeKernel(t, dir)
	unmount(t, dir)
	diffObserved(t, "reader", got, "kernel", want)
	return want
}

func TestReaderAgreesWithTheKernelOnImagesOfMke2fs(t *testing.T) {
	tests := []struct{ name, args string }{
		{"ext4", "-t ext4"},
		{"ext4 1 KiB blocks", "-t ext4 -b 1024"},
		{"ext4 without checksums", "-t ext4 -O ^metadata_csum,^64bit"},
		{"ext4 meta_bg", "-t ext4 -b 1024 -O meta_bg,^resize_inode"},
		{"ext4 small inodes", "-t ext4 -I 128"},
		{"ext4 large inodes", "-t ext4 -I 1024"},
		{"ext4 ea_inode", "-t ext4 -O ea_inode"},
		{"ext3", "-t ext3"},
		{"ext2", "-t ext2 -b 1024"},
		{"ext2 without file types", "-t ext2 -O ^filetype"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // most of the time goes to waiting for the disk
			image := filepath.Join(t.TempDir(), "image")
			args := append(strings.Fields("-q -F "+tt.args), image, "96M")
			if out, err := exec.Command("mke2fs", args...).CombinedOutput(); err != nil {
				t.Fatalf("mke2fs %v: %v\n%s", args, err, out)
			}
			dir := mount(t, image, "rw")
			populate(t, dir)
			if strings.Contains(tt.args, "ea_inode") {
				if err := unix.Setxattr(filepath.Join(dir, "small"), "user.huge", bytes.Repeat([]byte("h"), 20000), 0); err != nil {
					t.Fatal(err)
				}
			}
			unmount(t, dir)
			readerAgrees(t, image)
		})
	}
}

func TestKernelWritesToAnEmptyImage(t *testing.T) {
	image := empty(t, 4<<30, EmptyOptions{})
	dir := mount(t, image, "rw")
	populate(t, dir)
	unmount(t, dir)
	fsck(t, image)
	if n := len(readerAgrees(t, image)); n < 2000 {
		t.Errorf("%d files", n)
	}
	if features := debugfs(t, image, "features"); strings.Contains(features, "needs_recovery") {
		t.Errorf("unmounted, but %s", features)
	}
}

// TestCrashedImage takes a copy of an image while it is mounted and in use, as
// a machine that is killed leaves it: the reader must see what the kernel sees
// after it has replayed the journal.
func TestCrashedImage(t *testing.T) {
	for _, options := range []string{"rw", "rw,data=journal"} {
		t.Run(options, func(t *testing.T) {
			image := empty(t, 1<<30, EmptyOptions{})
			dir := mount(t, image, options)
			populate(t, dir)
			syncFS(t, dir)
			// Blocks that were logged and then freed are revoked.
			if err := os.RemoveAll(filepath.Join(dir, "many")); err != nil {
				t.Fatal(err)
			}
			syncFS(t, dir)
			if err := os.WriteFile(filepath.Join(dir, "reuse"), bytes.Repeat([]byte("r"), 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			syncFS(t, dir)
			crashed := filepath.Join(t.TempDir(), "crashed")
			if out, err := exec.Command("cp", "--sparse=always", image, crashed).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			unmount(t, dir)
			if f := debugfs(t, crashed, "features"); !strings.Contains(f, "needs_recovery") {
				t.Fatalf("the copy needs no recovery: %s", f)
			}

			fsys := openImage(t, crashed)
			if len(fsys.replayed) == 0 {
				t.Error("the journal had nothing to replay")
			}
			got := observeReader(t, fsys, ".")
			damageJournal(t, fsys)
			recovered := mount(t, crashed, "rw,noatime")
			want := observeKernel(t, recovered)
			unmount(t, recovered)
			diffObserved(t, "reader", got, "kernel", want)
			if _, ok := want["reuse"]; !ok {
				t.Error("what was synced is not there")
			}
			fsck(t, crashed)
		})
	}
}

// patchedReader is an image with four bytes changed.
type patchedReader struct {
	r    io.ReaderAt
	at   int64
	with [4]byte
}

func (p patchedReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.r.ReadAt(b, off)
	for i, v := range p.with {
		if at := p.at + int64(i) - off; at >= 0 && at < int64(n) {
			b[at] = v
		}
	}
	return n, err
}

// damageJournal changes the journal's superblock and its first descriptor. The
// reader may refuse such an image, and must not panic or hang.
func damageJournal(t *testing.T, fsys *FS) {
	t.Helper()
	n, err := fsys.inode(inoJournal)
	if err != nil {
		t.Fatal(err)
	}
	j, err := fsys.openJournal(n, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, logical := range []uint64{0, uint64(j.super.Start)} {
		block, err := j.locate(logical)
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < 100; off += 4 {
			for _, v := range []byte{0, 1, 0xFF} {
				p := patchedReader{fsys.r, int64(block)*blockSize + off, [4]byte{v, v, v, v}}
				if damaged, err := open(p, fsys.size, false); err == nil {
					_, _ = damaged.ReadDir("a")
				}
			}
		}
	}
}

// syncFS writes a mounted file system's log to disk.
func syncFS(t testing.TB, dir string) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.Syncfs(fd)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestReaderFollowsSymlinksWithinTheImage(t *testing.T) {
	image, _ := convert(t, makeTar(t,
		regular("etc/passwd", "root"),
		symlink("abs", "/root/etc/passwd"),
		symlink("rel", "etc/../etc/./passwd"),
		symlink("dir", "etc"),
		symlink("out", "../../../../root/etc/passwd"),
		symlink("loop", "loop"),
		symlink("dangling", "nothing"),
	))
	fsys := openImage(t, image)
	for _, name := range []string{"abs", "rel", "dir/passwd", "out", "etc/passwd"} {
		if f, err := fsys.Open("root/" + name); err != nil {
			t.Error(err)
		} else if info, err := f.Stat(); err != nil || info.Size() != 4 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	for _, name := range []string{"loop", "dangling", "etc/passwd/x", "absent", "etc/../etc", ""} {
		if _, err := fsys.Open("root/" + name); err == nil {
			t.Errorf("%q opens", name)
		}
	}
	if _, err := fsys.Lstat("root/loop"); err != nil {
		t.Error(err)
	}
	if target, err := fsys.ReadLink("root/rel"); err != nil || target != "etc/../etc/./passwd" {
		t.Errorf("%q, %v", target, err)
	}
}
