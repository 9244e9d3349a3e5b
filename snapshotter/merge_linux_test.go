package snapshotter

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/ext4"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar/sparsetest"
	"github.com/applevm/applevm/snapshotter/union"
)

func openLimited(t *testing.T, root string, limit int) *Snapshotter {
	t.Helper()
	s, err := New(t.Context(), root, Options{WritableSize: testSize, MaxLayers: limit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// longImage makes an image of n layers that add to, hide and replace each other's
// files, and returns the name of its snapshot.
func longImage(t *testing.T, s *Snapshotter, n int) string {
	t.Helper()
	parent := ""
	for i := range n {
		layer := []tartest.Entry{
			tartest.Dir("etc"), tartest.File("etc/passwd", fmt.Sprint("user", i)),
			tartest.Dir("d"), tartest.File(fmt.Sprintf("d/%03d", i), fmt.Sprint(i)),
			tartest.File(fmt.Sprintf("d/other%03d", i), fmt.Sprint(i)), tartest.Link(fmt.Sprintf("d/link%03d", i), fmt.Sprintf("d/other%03d", i)),
		}
		if i > 0 && i%3 == 0 {
			layer = append(layer, tartest.Whiteout(fmt.Sprintf("d/%03d", i-1)))
		}
		if i%10 == 5 {
			layer = append(layer, tartest.Dir("o"), tartest.Opaque("o"), tartest.File("o/only", fmt.Sprint(i)))
		}
		name := fmt.Sprint("layer", i)
		unpack(t, s, name, parent, tartest.Tar(t, layer...))
		parent = name
	}
	return parent
}

func container(t *testing.T, s *Snapshotter, key, parent string) manifest.Manifest {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), key, parent)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Find(mounts[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// shows lists what stacked layers show.
func shows(t *testing.T, layers []manifest.Layer) []string {
	t.Helper()
	var roots []union.Place
	for _, l := range slices.Backward(layers) {
		i, err := openImage(l.Path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = i.Close() })
		roots = append(roots, union.Place{Layer: i.FS, Path: manifest.LayerRoot})
	}
	var out []string
	var walk func(dir string, dirs []union.Place)
	walk = func(dir string, dirs []union.Place) {
		names, err := union.Names(dirs)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			n, err := union.Lookup(dirs, name)
			if err != nil {
				continue // a whiteout
			}
			line := path.Join(dir, name) + " " + n.Info.Mode().String()
			if n.Dirs == nil {
				b, err := fs.ReadFile(n.File.Layer, n.File.Path)
				if err != nil {
					t.Fatal(err)
				}
				line += " " + string(b)
			} else {
				walk(path.Join(dir, name), n.Dirs)
			}
			out = append(out, line)
		}
	}
	walk("", roots)
	slices.Sort(out)
	return out
}

func TestLongChainsAreMerged(t *testing.T) {
	const limit, layers = 4, 127
	s := openLimited(t, t.TempDir(), limit)
	top := longImage(t, s, layers)
	c, err := s.chainOf(t.Context(), top)
	if err != nil || len(c.layers) != layers {
		t.Fatalf("chain of %d layers, %v", len(c.layers), err)
	}
	m := container(t, s, "c1", top)
	if len(m.Layers) != limit || m.Layers[0].DiffID != "" || m.Layers[1] != c.layers[layers-limit+1] {
		t.Fatalf("the container has layers %+v, want %d, the first merged", m.Layers, limit)
	}
	want := shows(t, c.layers)
	if got := shows(t, m.Layers); !slices.Equal(got, want) {
		t.Errorf("merged, the layers show %q\nwant %q", got, want)
	}
	if out, err := exec.Command("e2fsck", "-fn", m.Layers[0].Path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	if again := container(t, s, "c2", top); !slices.Equal(again.Layers, m.Layers) {
		t.Errorf("a second container has other layers: %+v", again.Layers)
	}
	wantFiles(t, s, layersDir, layers+1)
}

// A file of the largest size, nearly all of it a hole, is merged without making
// the hole.
func TestMergeKeepsHoles(t *testing.T) {
	s := openLimited(t, t.TempDir(), 2)
	const size = 16<<40 - 8192
	file := sparsetest.File{
		Name: "huge", Size: size,
		Fragments: []sparsetar.Fragment{{Offset: 1 << 43, Length: 4096}}, Data: bytes.Repeat([]byte("x"), 4096),
	}
	unpack(t, s, "layer0", "", append(sparsetest.Append(nil, "PAX 1.0", file), sparsetest.End()...))
	for i, parent := range []string{"layer0", "layer1"} {
		unpack(t, s, fmt.Sprint("layer", i+1), parent, tartest.Tar(t, tartest.File(fmt.Sprint("f", i), "f")))
	}
	m := container(t, s, "c", "layer2")
	if len(m.Layers) != 2 || m.Layers[0].DiffID != "" {
		t.Fatalf("layers %+v", m.Layers)
	}
	i, err := openImage(m.Layers[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = i.Close() }()
	f, err := i.Open(path.Join(manifest.LayerRoot, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil || st.Size() != size || st.Sys().(*ext4.Stat).Blocks != 8 {
		t.Errorf("%+v, %v: want a size of %d bytes in 8 sectors", st.Sys(), err, size)
	}
	got := make([]byte, 4097)
	if _, err := f.(io.ReaderAt).ReadAt(got, 1<<43); err != nil || string(got) != string(file.Data)+"\x00" {
		t.Errorf("other data, %v", err)
	}
	if out, err := exec.Command("e2fsck", "-fn", m.Layers[0].Path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// The merged image lives as long as the image's layers, not as its containers,
// through restarts and clean-ups.
func TestMergedImagesLiveWithTheirLayers(t *testing.T) {
	root := t.TempDir()
	s := openLimited(t, root, 2)
	top := longImage(t, s, 5)
	before := container(t, s, "c1", top)
	if err := s.Remove(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openLimited(t, root, 2)
	wantFiles(t, s, layersDir, 6)
	info, err := os.Stat(before.Layers[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	after := container(t, s, "c2", top)
	if again, err := os.Stat(after.Layers[0].Path); err != nil || !os.SameFile(info, again) {
		t.Errorf("it was made again: %+v, %v", after.Layers, err)
	}
	if err := s.Remove(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	for i := 4; i >= 0; i-- {
		if err := s.Remove(t.Context(), fmt.Sprint("layer", i)); err != nil {
			t.Fatal(err)
		}
	}
	wantFiles(t, s, layersDir, 0)
}

func TestMergeOnceForManyAtATime(t *testing.T) {
	s := openLimited(t, t.TempDir(), 2)
	top := longImage(t, s, 6)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { container(t, s, fmt.Sprint("c", i), top) })
	}
	wg.Wait()
	wantFiles(t, s, layersDir, 7)
}

func TestMergeOfADamagedLayerLeavesNothing(t *testing.T) {
	s := openLimited(t, t.TempDir(), 2)
	top := longImage(t, s, 4)
	c, err := s.chainOf(t.Context(), top)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.layers[1].Path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(c.layers[1].Path, 3<<12); err != nil {
		t.Fatal(err)
	}
	_, err = s.Prepare(t.Context(), "c", top)
	if err == nil || !strings.Contains(err.Error(), c.layers[1].DiffID) {
		t.Errorf("error %v does not name the damaged layer", err)
	}
	wantFiles(t, s, layersDir, 4)
	wantFiles(t, s, snapshotsDir, 4)
}
