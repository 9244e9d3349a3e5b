package changes

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	. "github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/ext4"
	"github.com/applevm/applevm/snapshotter/union"
)

// places returns the roots of layers that are given lowest first, the highest first.
func places(t testing.TB, layers ...[]Entry) []union.Place {
	t.Helper()
	var p []union.Place
	for _, l := range slices.Backward(layers) {
		p = append(p, union.Place{Layer: OpenImage(t, Tar(t, l...)), Path: manifest.LayerRoot})
	}
	return p
}

// entries lists a layer: one line an entry.
func entries(t testing.TB, layer []byte) []string {
	t.Helper()
	var out []string
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %s", h.Typeflag, h.Name)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if len(b) > 0 {
			line += " " + string(b)
		}
		out = append(out, line)
	}
}

func write(t testing.TB, upper, lower []union.Place, opts Options) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(context.Background(), &b, upper, lower, opts); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWrite(t *testing.T) {
	base := []Entry{Dir("etc"), File("etc/a", "a"), File("etc/b", "b"), Dir("etc/d"), File("etc/d/x", "x"), File("f", "f")}
	tests := []struct {
		name  string
		lower [][]Entry
		upper [][]Entry
		want  []string
	}{
		{"nothing", [][]Entry{base}, [][]Entry{{}}, nil},
		{"no lower", nil, [][]Entry{{File("f", "f")}}, []string{"5 ./", "0 f f"}},
		{"a new file", [][]Entry{base}, [][]Entry{{File("etc/new", "n")}}, []string{"5 etc/", "0 etc/new n"}},
		{"a removed file", [][]Entry{base}, [][]Entry{{Whiteout("etc/a")}}, []string{"5 etc/", "0 etc/.wh.a"}},
		{"a removed directory", [][]Entry{base}, [][]Entry{{Whiteout("etc")}}, []string{"0 .wh.etc"}},
		{"made and removed again", [][]Entry{base}, [][]Entry{{Whiteout("never")}}, nil},
		{"a directory that replaces one", [][]Entry{base}, [][]Entry{{Dir("etc"), Opaque("etc"), File("etc/c", "c")}},
			[]string{"5 etc/", "0 etc/.wh..wh..opq", "0 etc/c c"}},
		{"a new directory, opaque as overlayfs makes it", [][]Entry{base}, [][]Entry{{Dir("new"), Opaque("new"), File("new/c", "c")}},
			[]string{"5 new/", "0 new/c c"}},
		{"a directory in place of a file", [][]Entry{base}, [][]Entry{{Dir("f"), Opaque("f"), File("f/c", "c")}}, []string{"5 f/", "0 f/c c"}},
		{"a file in place of a directory", [][]Entry{base}, [][]Entry{{File("etc", "e")}}, []string{"0 etc e"}},
		{"hard links", [][]Entry{base}, [][]Entry{{File("z", "z"), Link("y", "z"), Dir("d"), Link("d/x", "z")}},
			[]string{"5 d/", "0 d/x z", "1 y -> d/x", "1 z -> d/x"}},
		{"hard links of a symlink", [][]Entry{base}, [][]Entry{{Symlink("l", "t"), Link("m", "l")}}, []string{"2 l -> t", "1 m -> l"}},
		{"other types", [][]Entry{base}, [][]Entry{{Symlink("l", "/etc"), Fifo("p")}}, []string{"2 l -> /etc", "6 p"}},
		{"two layers as one", [][]Entry{base}, [][]Entry{{File("one", "1"), File("both", "1"), Whiteout("etc/a")}, {File("two", "2"), File("both", "2"), Whiteout("one")}},
			[]string{"0 both 2", "5 etc/", "0 etc/.wh.a", "0 two 2"}},
		{"two layers, made again after removal", [][]Entry{base}, [][]Entry{{Whiteout("etc")}, {Dir("etc"), File("etc/n", "n")}},
			[]string{"5 etc/", "0 etc/.wh..wh..opq", "0 etc/n n"}},
		{"lower of two layers", [][]Entry{base, {Whiteout("etc/a")}}, [][]Entry{{Whiteout("etc/a"), Whiteout("etc/b")}}, []string{"5 etc/", "0 etc/.wh.b"}},
		{"an opaque root", [][]Entry{base}, [][]Entry{{Opaque("."), File("n", "n")}}, []string{"0 .wh..wh..opq", "5 ./", "0 n n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := entries(t, write(t, places(t, tt.upper...), places(t, tt.lower...), Options{}))
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestWriteKeepsMetadata(t *testing.T) {
	when := time.Unix(-5, 123456789)
	h := tar.Header{
		Typeflag: tar.TypeReg, Name: "f\xff", Mode: 0o6711, Uid: 1 << 20, Gid: 70000, ModTime: when, Size: 1, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"SCHILY.xattr.user.a": "v", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	}
	upper := places(t, []Entry{{Header: h, Content: "c"}})
	r := tar.NewReader(bytes.NewReader(write(t, upper, places(t, []Entry{}), Options{})))
	got, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != h.Name || got.Mode != h.Mode || got.Uid != h.Uid || got.Gid != h.Gid || !got.ModTime.Equal(when) {
		t.Errorf("got %+v", got)
	}
	for k, v := range h.PAXRecords {
		if got.PAXRecords[k] != v {
			t.Errorf("%s is %q", k, got.PAXRecords[k])
		}
	}
	r = tar.NewReader(bytes.NewReader(write(t, upper, places(t, []Entry{}), Options{Latest: time.Unix(-100, 0)})))
	if got, err := r.Next(); err != nil || !got.ModTime.Equal(time.Unix(-100, 0)) {
		t.Errorf("with a latest time: %+v, %v", got, err)
	}
}

// overlayAttrs shows attributes of a directory as overlayfs leaves them.
type overlayAttrs struct {
	union.Layer
	name  string
	attrs map[string][]byte
}

func (o overlayAttrs) Xattrs(name string) (map[string][]byte, error) {
	if path.Base(name) == o.name {
		return o.attrs, nil
	}
	return o.Layer.Xattrs(name)
}

func TestWriteLeavesOverlayfsBooksOut(t *testing.T) {
	upper := places(t, []Entry{Dir("d")})
	upper[0].Layer = overlayAttrs{upper[0].Layer, "d", map[string][]byte{
		"trusted.overlay.opaque": []byte("y"), "trusted.overlay.origin": {1}, "trusted.overlay.impure": []byte("y"),
		"trusted.overlay.overlay.opaque": []byte("x"), "trusted.mine": []byte("m"),
	}}
	r := tar.NewReader(bytes.NewReader(write(t, upper, places(t, []Entry{}), Options{})))
	h, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	got := maps.Collect(func(yield func(string, string) bool) {
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, paxXattr); ok && !yield(name, v) {
				return
			}
		}
	})
	if want := map[string]string{"trusted.overlay.opaque": "x", "trusted.mine": "m"}; !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWriteRefusesANameThatMeansSomethingElse(t *testing.T) {
	upper := places(t, []Entry{Dir("d")})
	upper[0].Layer = renamed{upper[0].Layer}
	err := Write(context.Background(), io.Discard, upper, nil, Options{})
	if err == nil || !strings.Contains(err.Error(), `".wh.d"`) {
		t.Errorf("error %v", err)
	}
}

// renamed lists a directory's names with a whiteout's prefix.
type renamed struct{ union.Layer }

func (r renamed) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := fs.ReadDir(r.Layer, name)
	for i, e := range list {
		list[i] = renamedEntry{e}
	}
	return list, err
}

type renamedEntry struct{ fs.DirEntry }

func (e renamedEntry) Name() string { return ".wh." + e.DirEntry.Name() }

func TestWriteRefusesTooMuch(t *testing.T) {
	upper := places(t, []Entry{File("a", "12345"), File("b", "67890")})
	write(t, upper, nil, Options{MaxBytes: 10})
	err := Write(context.Background(), io.Discard, upper, nil, Options{MaxBytes: 9})
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("error %v", err)
	}
}

func TestWriteEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Write(ctx, io.Discard, places(t, []Entry{File("f", "x")}), nil, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// What Write makes of random changes, applied as a layer again, shows what the
// changes showed.
func TestWriteIsWhatWasChanged(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var lower, upper [][]Entry
		for range rnd.IntN(3) {
			lower = append(lower, randomLayer(rnd))
		}
		for range 1 + rnd.IntN(2) {
			upper = append(upper, randomLayer(rnd))
		}
		low, up := places(t, lower...), places(t, upper...)
		layer := write(t, up, low, Options{})
		again := append([]union.Place{{Layer: openLayer(t, layer), Path: manifest.LayerRoot}}, low...)
		got, want := show(t, again), show(t, append(slices.Clone(up), low...))
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: lower %v\nupper %v\nlayer %q\nshows %q\nwant  %q", seed, lower, upper, entries(t, layer), got, want)
		}
	}
}

func openLayer(t testing.TB, layer []byte) *ext4.FS { return OpenImage(t, layer) }

// randomLayer makes a layer in a small space of names, so that layers meet.
func randomLayer(rnd *rand.Rand) []Entry {
	var out []Entry
	var fill func(dir string, depth int)
	fill = func(dir string, depth int) {
		for _, n := range []string{"a", "b", "c"} {
			p := path.Join(dir, n)
			switch k := rnd.IntN(8); {
			case k < 2:
			case k == 2:
				out = append(out, Whiteout(p))
			case k == 3:
				out = append(out, Symlink(p, fmt.Sprint("t", rnd.IntN(3))))
			case k < 6 || depth == 3:
				out = append(out, File(p, fmt.Sprint(rnd.IntN(100))))
			default:
				out = append(out, Dir(p))
				if rnd.IntN(3) == 0 {
					out = append(out, Opaque(p))
				}
				fill(p, depth+1)
			}
		}
	}
	fill("", 1)
	return out
}

// show lists what a union shows.
func show(t testing.TB, dirs []union.Place) []string {
	t.Helper()
	var out []string
	var walk func(prefix string, dirs []union.Place)
	walk = func(prefix string, dirs []union.Place) {
		names, err := union.Names(dirs)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			n, err := union.Lookup(dirs, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			line := fmt.Sprintf("%s%s %v %v", prefix, name, n.Info.Mode(), n.Info.ModTime().Unix())
			if n.Dirs == nil && n.Info.Mode().IsRegular() {
				b, err := fs.ReadFile(n.File.Layer, n.File.Path)
				if err != nil {
					t.Fatal(err)
				}
				line += " " + string(b)
			}
			if n.Info.Mode()&fs.ModeSymlink != 0 {
				target, err := n.File.Layer.ReadLink(n.File.Path)
				if err != nil {
					t.Fatal(err)
				}
				line += " -> " + target
			}
			out = append(out, line)
			if n.Dirs != nil {
				walk(prefix+name+"/", n.Dirs)
			}
		}
	}
	walk("", dirs)
	return out
}
