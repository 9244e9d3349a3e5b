package ext4

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// debugfs runs one debugfs command on an image.
func debugfs(t testing.TB, image, command string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", command, image).CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs %s: %v\n%s", command, err, out)
	}
	return string(out)
}

func TestLargeDirectoryHasAHashTree(t *testing.T) {
	const n = 100_000
	name := func(i int) string { return fmt.Sprintf("%s%06d", strings.Repeat("n", i%90), i) }
	files := make([]file, n)
	for i := range files {
		files[i] = file{Header: tar.Header{Name: "big/" + name(i), Format: tar.FormatUSTAR}}
	}
	image, _ := convert(t, makeTar(t, files...))

	stat := debugfs(t, image, "stat /"+DefaultRoot+"/big")
	if !strings.Contains(stat, "Flags: 0x81000") {
		t.Errorf("no index flag:\n%s", stat)
	}
	tree := debugfs(t, image, "htree_dump /"+DefaultRoot+"/big")
	if !strings.Contains(tree, "Indirect levels: 1") || !strings.Contains(tree, "Hash Version: 1") {
		t.Errorf("not a half-MD4 hash tree of two levels:\n%.600s", tree)
	}

	dir := filepath.Join(mount(t, image, "ro"), DefaultRoot, "big")
	var st unix.Stat_t
	for i := range n {
		if err := unix.Lstat(filepath.Join(dir, name(i)), &st); err != nil {
			t.Fatalf("the kernel does not find entry %d: %v", i, err)
		}
	}
	if err := unix.Lstat(filepath.Join(dir, "absent"), &st); err != unix.ENOENT {
		t.Errorf("an absent name: %v", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil || len(names) != n {
		t.Errorf("the kernel lists %d entries (%v), want %d", len(names), err, n)
	}

	fsys := openImage(t, image)
	list, err := fsys.ReadDir(DefaultRoot + "/big")
	if err != nil || len(list) != n {
		t.Fatalf("the reader lists %d entries (%v), want %d", len(list), err, n)
	}
	if _, err := fsys.Lstat(DefaultRoot + "/big/" + name(n/2)); err != nil {
		t.Error(err)
	}
}

// TestDirectorySizes covers the steps from one block to a hash tree and from
// one level to two.
func TestDirectorySizes(t *testing.T) {
	// 15 names of 255 bytes fill a block.
	for _, n := range []int{1, 14, 15, 16, 30, 15 * dxRootLimit, 15*dxRootLimit + 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			files := make([]file, n)
			for i := range files {
				files[i] = file{Header: tar.Header{Name: fmt.Sprintf("%0255d", i)}}
			}
			image, _ := convert(t, makeTar(t, files...))
			if got := observeBoth(t, image); len(got) != n+1 {
				t.Errorf("%d files, want %d", len(got), n+1)
			}
		})
	}
}

func TestMoreSubdirectoriesThanLinks(t *testing.T) {
	const n = maxLinks + 10
	files := make([]file, n)
	for i := range files {
		files[i] = file{Header: tar.Header{Name: fmt.Sprintf("many/%05d/", i), Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatUSTAR}}
	}
	image, _ := convert(t, makeTar(t, files...))
	dir := filepath.Join(mount(t, image, "ro"), DefaultRoot, "many")
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil || st.Nlink != 1 {
		t.Errorf("link count %d (%v), want 1: too many to count", st.Nlink, err)
	}
	if err := unix.Lstat(filepath.Join(dir, fmt.Sprintf("%05d", n-1)), &st); err != nil {
		t.Error(err)
	}
}
