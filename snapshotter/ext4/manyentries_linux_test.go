package ext4

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDirectoryOfAMillionEntries: the kernel and the reader find names in the
// largest directory that one may expect, the kernel by a hash tree.
func TestDirectoryOfAMillionEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("writes half a gigabyte of tar")
	}
	n := 1_000_000
	if raceDetector {
		n = 200_000
	}
	image := filepath.Join(t.TempDir(), "layer.ext4")
	convertManyEntries(t, image, n)
	fsck(t, image)

	fsys := openImage(t, image)
	levels, blocks := hashTree(t, fsys, DefaultRoot+"/many")
	// A name is looked for in the root, in one node for each level, in a leaf.
	if levels != 1 || blocks < int64(n)*direntHeaderSize/blockSize {
		t.Errorf("a hash tree of %d levels below its root, %d blocks in all", levels, blocks)
	}
	if stat := debugfs(t, image, "stat /"+DefaultRoot+"/many"); !strings.Contains(stat, "Flags: 0x81000") {
		t.Errorf("no index flag:\n%s", stat)
	}

	dir := filepath.Join(mount(t, image, "ro"), DefaultRoot, "many")
	rng := rand.New(rand.NewPCG(5, 6))
	for range 1000 {
		name := entryName(rng.IntN(n))
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatalf("the kernel does not find %q: %v", name, err)
		}
		info, err := fsys.Lstat(DefaultRoot + "/many/" + name)
		if err != nil {
			t.Fatalf("the reader does not find %q: %v", name, err)
		}
		if s := info.Sys().(*Stat); uint64(s.Ino) != st.Ino {
			t.Errorf("%q is inode %d for the reader, %d for the kernel", name, s.Ino, st.Ino)
		}
	}
	for _, name := range []string{entryName(n), entryName(n) + "x", "absent"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("the kernel, of the absent %q: %v", name, err)
		}
		if _, err := fsys.Lstat(DefaultRoot + "/many/" + name); !os.IsNotExist(err) {
			t.Errorf("the reader, of the absent %q: %v", name, err)
		}
	}
}

func entryName(i int) string { return fmt.Sprintf("entry-%d", i) }

// convertManyEntries makes an image of a directory of n empty files. The tar is
// never in memory as a whole.
func convertManyEntries(t *testing.T, image string, n int) {
	t.Helper()
	r, pw := io.Pipe()
	defer func() { _ = r.Close() }() // ends the writer if the conversion fails
	go func() {
		buf := bufio.NewWriterSize(pw, 1<<20)
		tw := tar.NewWriter(buf)
		var err error
		for i := 0; i < n && err == nil; i++ {
			err = tw.WriteHeader(&tar.Header{Name: "many/" + entryName(i), Mode: 0o644, Format: tar.FormatUSTAR})
		}
		if err == nil {
			err = tw.Close()
		}
		if err == nil {
			err = buf.Flush()
		}
		pw.CloseWithError(err)
	}()
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := NewLayerWriter(f, LayerOptions{})
	if err := w.ReadTar(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish([32]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// hashTree returns how many levels of nodes a directory's hash tree has below
// its root, as the root says, and how many blocks the directory has.
func hashTree(t *testing.T, fsys *FS, path string) (levels int, blocks int64) {
	t.Helper()
	n, err := fsys.find(path, false)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, blockSize)
	if err := fsys.readFile(n, b, 0); err != nil {
		t.Fatal(err)
	}
	const indirectLevels = 2*direntHeaderSize + 2*4 + 6 // in dx_root, behind "." and ".."
	return int(b[indirectLevels]), int64(n.size / blockSize)
}
