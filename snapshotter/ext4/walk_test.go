package ext4

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestWalkAgreesWithTheFS compares Walk with fs.WalkDir and the methods of FS.
func TestWalkAgreesWithTheFS(t *testing.T) {
	image := fuzzImage(t)
	fsys, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Entry{}
	err = fs.WalkDir(fsys, ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := fsys.Lstat(path)
		if err != nil {
			return err
		}
		e := Entry{Path: path, Stat: *st.Sys().(*Stat)}
		if st.Mode().Type() == fs.ModeSymlink {
			if e.Target, err = fsys.ReadLink(path); err != nil {
				return err
			}
		}
		e.Xattrs, err = fsys.Xattrs(path)
		want[path] = e
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Entry{}
	for e, err := range fsys.Walk() {
		if err != nil {
			t.Errorf("%s: %v", e.Path, err)
		}
		if _, ok := got[e.Path]; ok {
			t.Errorf("%s came twice", e.Path)
		}
		got[e.Path] = e
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("walked %d entries, want %d:\n%v\n%v", len(got), len(want), slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

func TestWalkOrder(t *testing.T) {
	path, _ := convert(t, makeTar(t,
		file{Header: tar.Header{Name: "b/y/2"}}, file{Header: tar.Header{Name: "b/x"}},
		file{Header: tar.Header{Name: "a/1"}}, file{Header: tar.Header{Name: "c"}}))
	var got []string
	for e, err := range openImage(t, path).Walk() {
		if err != nil {
			t.Error(err)
		}
		if got = append(got, e.Path); e.Path == "root/b/y" {
			break // and nothing comes after it
		}
	}
	want := []string{".", "lost+found", "root", "root/a", "root/b", "root/c", "root/a/1", "root/b/x", "root/b/y"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestWalkGoesOnAfterAnError damages one inode and the block of one directory.
func TestWalkGoesOnAfterAnError(t *testing.T) {
	path, _ := convert(t, makeTar(t,
		file{Header: tar.Header{Name: "bad"}, body: "one"}, file{Header: tar.Header{Name: "dir/in"}}, file{Header: tar.Header{Name: "good"}}))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	bad, err := fsys.find("root/bad", false)
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, bad.raw)+4]++ // its size
	b[bytes.Index(b, []byte("\x02\x01in"))+2] = 'o'
	if fsys, err = Open(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	var good, failed []string
	for e, err := range fsys.Walk() {
		if err == nil {
			good = append(good, e.Path)
			continue
		}
		failed = append(failed, e.Path)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), e.Path) {
			t.Errorf("%s: error %q, want ErrCorrupt and the path", e.Path, err)
		}
	}
	if want := []string{".", "lost+found", "root", "root/dir", "root/good"}; !slices.Equal(good, want) {
		t.Errorf("read %q, want %q", good, want)
	}
	if want := []string{"root/bad", "root/dir"}; !slices.Equal(failed, want) {
		t.Errorf("could not read %q, want %q", failed, want)
	}
}
