package facade

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	. "github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/union"
)

// merged returns the union of layers, lowest first.
func merged(t *testing.T, layers ...[]Entry) *union.Merged {
	t.Helper()
	var m union.Merged
	for _, entries := range slices.Backward(layers) {
		opaque, err := m.Under(OpenImage(t, Tar(t, entries...)), manifest.LayerRoot)
		if err != nil {
			t.Fatal(err)
		}
		if opaque {
			break
		}
	}
	return &m
}

// tree returns the files below dir with their content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			t.Errorf("%s is not a regular file", path)
			return nil
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestWriteShowsUsersAsTheUnionDoes(t *testing.T) {
	huge := strings.Repeat("x", MaxFileSize)
	base := []Entry{Dir("etc"), File("etc/passwd", "base"), File("etc/group", "staff"), File("etc/shadow", "secret")}
	tests := []struct {
		name   string
		layers [][]Entry
		want   map[string]string
	}{
		{"no layers", nil, map[string]string{}},
		{"one layer", [][]Entry{base}, map[string]string{"etc/passwd": "base", "etc/group": "staff"}},
		{"no users", [][]Entry{{Dir("bin")}}, map[string]string{}},
		{"upper file wins", [][]Entry{base, {File("etc/passwd", "upper")}},
			map[string]string{"etc/passwd": "upper", "etc/group": "staff"}},
		{"whiteout of a file", [][]Entry{base, {Whiteout("etc/passwd")}}, map[string]string{"etc/group": "staff"}},
		{"whiteout of the directory", [][]Entry{base, {Whiteout("etc")}}, map[string]string{}},
		{"whiteout, then the file again", [][]Entry{base, {Whiteout("etc/passwd")}, {File("etc/passwd", "third")}},
			map[string]string{"etc/passwd": "third", "etc/group": "staff"}},
		{"directory removed, then made again", [][]Entry{base, {Whiteout("etc")}, {Dir("etc"), File("etc/passwd", "third")}},
			map[string]string{"etc/passwd": "third"}},
		{"opaque directory", [][]Entry{base, {Dir("etc"), Opaque("etc"), File("etc/group", "only")}},
			map[string]string{"etc/group": "only"}},
		{"opaque root", [][]Entry{base, {Opaque("."), Dir("bin")}}, map[string]string{}},
		{"opaque directory in the middle", [][]Entry{base, {Opaque("etc")}, {File("etc/group", "top")}},
			map[string]string{"etc/group": "top"}},
		{"directory replaced by a file", [][]Entry{base, {File("etc", "not a directory")}}, map[string]string{}},
		{"directory replaced by a file and made again", [][]Entry{base, {File("etc", "file")}, {Dir("etc"), File("etc/group", "top")}},
			map[string]string{"etc/group": "top"}},
		{"relative link", [][]Entry{{Dir("etc"), Symlink("etc/passwd", "real"), File("etc/real", "r")}},
			map[string]string{"etc/passwd": "r"}},
		{"relative link upwards", [][]Entry{{Dir("etc"), Dir("usr"), Symlink("etc/passwd", "../usr/pw"), File("usr/pw", "u")}},
			map[string]string{"etc/passwd": "u"}},
		{"absolute link stays within", [][]Entry{{Dir("etc"), Dir("usr"), Symlink("etc/passwd", "/usr/pw"), File("usr/pw", "u")}},
			map[string]string{"etc/passwd": "u"}},
		{"link above the root stays within", [][]Entry{{Dir("etc"), Symlink("etc/passwd", "../../../../../pw"), File("pw", "p")}},
			map[string]string{"etc/passwd": "p"}},
		{"link to a file of the host", [][]Entry{{Dir("etc"), Symlink("etc/passwd", "/proc/self/environ"), Symlink("etc/group", "/etc/shadow")}},
			map[string]string{}},
		{"link across layers", [][]Entry{{Dir("usr"), File("usr/pw", "low")}, {Dir("etc"), Symlink("etc/passwd", "/usr/pw")}, {File("usr/pw", "top")}},
			map[string]string{"etc/passwd": "top"}},
		{"etc is a link", [][]Entry{{Dir("usr"), Dir("usr/etc"), File("usr/etc/passwd", "p"), Symlink("etc", "usr/etc")}},
			map[string]string{"etc/passwd": "p"}},
		{"link to itself", [][]Entry{{Dir("etc"), Symlink("etc/passwd", "passwd"), File("etc/group", "g")}},
			map[string]string{"etc/group": "g"}},
		{"links in a circle", [][]Entry{{Symlink("etc", "a"), Symlink("a", "/etc")}}, map[string]string{}},
		{"dangling link", [][]Entry{{Dir("etc"), Symlink("etc/passwd", "/none")}}, map[string]string{}},
		{"link through a file", [][]Entry{{Dir("etc"), File("f", ""), Symlink("etc/passwd", "/f/x")}}, map[string]string{}},
		{"hard link", [][]Entry{{Dir("etc"), File("etc/real", "r"), Link("etc/passwd", "etc/real")}},
			map[string]string{"etc/passwd": "r"}},
		{"a directory", [][]Entry{{Dir("etc"), Dir("etc/passwd"), File("etc/group", "g")}}, map[string]string{"etc/group": "g"}},
		{"a pipe", [][]Entry{{Dir("etc"), Fifo("etc/passwd"), File("etc/group", "g")}}, map[string]string{"etc/group": "g"}},
		{"largest file", [][]Entry{{Dir("etc"), File("etc/passwd", huge)}}, map[string]string{"etc/passwd": huge}},
		{"too large a file", [][]Entry{{Dir("etc"), File("etc/passwd", huge+"x"), File("etc/group", "g")}},
			map[string]string{"etc/group": "g"}},
		{"empty file", [][]Entry{{Dir("etc"), File("etc/passwd", "")}}, map[string]string{"etc/passwd": ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := Write(context.Background(), dir, merged(t, tt.layers...)); err != nil {
				t.Fatal(err)
			}
			if got := tree(t, dir); !maps.Equal(got, tt.want) {
				t.Errorf("facade has %.200q, want %.200q", got, tt.want)
			}
		})
	}
}

func TestWriteReplacesAnEarlierFacade(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct {
		layers [][]Entry
		want   map[string]string
	}{
		{[][]Entry{{File("etc/passwd", "1"), File("etc/group", "g")}}, map[string]string{"etc/passwd": "1", "etc/group": "g"}},
		{[][]Entry{{File("etc/passwd", "2")}}, map[string]string{"etc/passwd": "2"}},
	} {
		if err := Write(context.Background(), dir, merged(t, step.layers...)); err != nil {
			t.Fatal(err)
		}
		if got := tree(t, dir); !maps.Equal(got, step.want) {
			t.Errorf("facade has %q, want %q", got, step.want)
		}
	}
}

func TestFacadeIsReadableWhateverTheUmask(t *testing.T) {
	dir := t.TempDir()
	if err := Write(context.Background(), dir, merged(t, []Entry{File("etc/passwd", "x")})); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"etc": 0o755, "etc/passwd": 0o644} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, st.Mode().Perm(), want)
		}
	}
}

// brokenLayer fails as a damaged image does.
type brokenLayer struct{ union.Layer }

var errBroken = errors.New("damaged")

func (b brokenLayer) Lstat(name string) (fs.FileInfo, error) {
	if path.Base(name) == "passwd" {
		return nil, errBroken
	}
	return b.Layer.Lstat(name)
}

func TestWriteReportsADamagedLayer(t *testing.T) {
	var m union.Merged
	if _, err := m.Under(brokenLayer{OpenImage(t, Tar(t, File("etc/passwd", "x")))}, manifest.LayerRoot); err != nil {
		t.Fatal(err)
	}
	if err := Write(context.Background(), t.TempDir(), &m); !errors.Is(err, errBroken) {
		t.Errorf("Write = %v, want the layer's error", err)
	}
}

func TestWriteEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Write(ctx, t.TempDir(), merged(t, []Entry{File("etc/passwd", "x")})); !errors.Is(err, context.Canceled) {
		t.Errorf("Write = %v, want context.Canceled", err)
	}
}
