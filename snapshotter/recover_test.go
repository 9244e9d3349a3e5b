package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/ext4"
)

func TestNewRemovesGarbage(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	diffID := unpack(t, s, "img", "", usersLayer(t, "u"))
	if _, err := s.Prepare(t.Context(), "c", "img"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	unused := digest.FromString("unused")
	garbage := []string{
		filepath.Join(snapshotsDir, newPrefix+"1", manifest.FacadeDir),
		filepath.Join(snapshotsDir, deadPrefix+"1", manifest.FacadeDir),
		filepath.Join(snapshotsDir, "77", manifest.FacadeDir),
		filepath.Join(snapshotsDir, "78", manifest.FacadeDir),
	}
	for _, dir := range garbage {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Directories of removed snapshots that still name a layer: one that
	// nobody uses, and one that is in use.
	for id, layer := range map[string]digest.Digest{"77": unused, "78": diffID} {
		if err := writeDiffID(filepath.Join(root, snapshotsDir, id), layer); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{filepath.Join(root, layersDir, tempPrefix+"1.ext4"), s.layers.path(unused)} {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, root)
	wantFiles(t, s, snapshotsDir, 2)
	wantFiles(t, s, layersDir, 1)
	if _, err := os.Stat(s.layers.path(diffID)); err != nil {
		t.Errorf("the layer in use is gone: %v", err)
	}
}

func TestCleanupKeepsWhatIsBeingWritten(t *testing.T) {
	s := open(t, t.TempDir())
	mounts, err := s.Prepare(t.Context(), extractionKey("l"), "")
	if err != nil {
		t.Fatal(err)
	}
	err = s.AddLayer(t.Context(), mounts, func(f *os.File) (digest.Digest, error) {
		if err := s.Cleanup(t.Context()); err != nil {
			t.Error(err)
		}
		return tartest.WriteImage(f, usersLayer(t, "u"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), "l", extractionKey("l")); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, s, layersDir, 1)
}

func TestRemoveDuringApply(t *testing.T) {
	s := open(t, t.TempDir())
	mounts, err := s.Prepare(t.Context(), extractionKey("l"), "")
	if err != nil {
		t.Fatal(err)
	}
	err = s.AddLayer(t.Context(), mounts, func(f *os.File) (digest.Digest, error) {
		if err := s.Remove(t.Context(), extractionKey("l")); err != nil {
			t.Error(err)
		}
		return tartest.WriteImage(f, usersLayer(t, "u"))
	})
	if err == nil {
		t.Error("a layer was applied to a removed snapshot")
	}
	wantFiles(t, s, layersDir, 0)
	wantFiles(t, s, snapshotsDir, 0)
}

// childEnv makes the test binary the process that TestKill kills.
const childEnv = "APPLEVM_TEST_SNAPSHOTTER_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(childEnv); root != "" {
		fmt.Fprintln(os.Stderr, churn(root))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// killOptions make a merged image of any two layers.
var killOptions = Options{WritableSize: testSize, MaxLayers: 1}

// churn uses a root directory until it fails or is killed.
func churn(root string) error {
	ctx := context.Background()
	s, err := New(ctx, root, killOptions)
	if err != nil {
		return err
	}
	fmt.Println("open")
	run := rand.Int()
	for i := 0; ; i++ {
		low := fmt.Sprintf("l-%d-%d", run, i)
		top := low + "-top"
		for _, l := range []struct{ name, parent string }{{low, ""}, {top, low}} {
			layer, err := randomLayer(fmt.Sprint(rand.IntN(4)))
			if err != nil {
				return err
			}
			mounts, err := s.Prepare(ctx, extractionKey(l.name), l.parent)
			if err != nil {
				return err
			}
			err = s.AddLayer(ctx, mounts, func(f *os.File) (digest.Digest, error) { return tartest.WriteImage(f, layer) })
			if err != nil {
				return err
			}
			if err := s.Commit(ctx, l.name, extractionKey(l.name)); err != nil {
				return err
			}
		}
		if _, err := s.Prepare(ctx, "c"+top, top); err != nil {
			return err
		}
		if i%2 == 0 {
			if err := commitChanges(ctx, s, "r"+top, top); err != nil {
				return err
			}
		}
		if i%3 != 0 {
			if err := errors.Join(s.Remove(ctx, "c"+top), s.Remove(ctx, top), s.Remove(ctx, low)); err != nil {
				return err
			}
		}
		if i%5 == 0 {
			if err := s.Cleanup(ctx); err != nil {
				return err
			}
		}
	}
}

// commitChanges commits a snapshot that a kernel has mounted.
func commitChanges(ctx context.Context, s *Snapshotter, key, parent string) error {
	mounts, err := s.Prepare(ctx, key, parent)
	if err != nil {
		return err
	}
	if err := markMounted(filepath.Join(filepath.Dir(mounts[0].Source), writableFile)); err != nil {
		return err
	}
	if err := s.Commit(ctx, key+"-committed", key); err != nil {
		return err
	}
	return s.Remove(ctx, key+"-committed")
}

// committedChanges reports whether name is a snapshot of commitChanges.
func committedChanges(name string) bool { return strings.HasSuffix(name, "-committed") }

func randomLayer(content string) ([]byte, error) {
	return tartest.TarBytes(tartest.Dir("etc"), tartest.File("etc/passwd", content))
}

// TestKill kills a process that uses a root directory at random moments. The
// next one must be able to open it, find every committed snapshot whole, and
// no file that belongs to none.
func TestKill(t *testing.T) {
	root := t.TempDir()
	for range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+root)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Errorf("the process did not open the root: %q, %v", line, err)
		}
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed, that is no news
		checkWhole(t, root)
	}
}

// checkWhole checks the state that New makes of a root directory.
func checkWhole(t *testing.T, root string) {
	t.Helper()
	s, err := New(t.Context(), root, killOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	known := 0
	images := make(map[string]bool)
	whole := func(l manifest.Layer) {
		image, err := openImage(l.Path)
		if err != nil {
			t.Errorf("layer %+v: %v", l, err)
			return
		}
		defer func() { _ = image.Close() }()
		readPasswd(t, image.FS)
	}
	ids, err := s.ids(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id := range ids {
		names, err := imagesOf(s.snapshotDir(id))
		if err != nil {
			t.Error(err)
		}
		for _, n := range names {
			images[n] = true
		}
	}
	err = s.Walk(t.Context(), func(ctx context.Context, info snapshots.Info) error {
		known++
		if info.Kind == snapshots.KindCommitted {
			c, err := s.chainOf(ctx, info.Name)
			if err != nil || len(c.layers) < 1 {
				t.Errorf("committed snapshot %s: %+v, %v", info.Name, c, err)
			}
			for i, l := range c.layers {
				if committedChanges(info.Name) && i == len(c.layers)-1 {
					continue // it holds no file
				}
				whole(l)
			}
			return nil
		}
		snap, err := s.Mounts(ctx, info.Name)
		if err != nil || isExtraction(info.Name, nil) {
			return err
		}
		m, err := manifest.Find(snap[0].Source)
		if err != nil || m.Writable == nil || len(m.Layers) != 1 {
			t.Errorf("container %s: %+v, %v", info.Name, m, err)
			return nil
		}
		whole(m.Layers[0])
		if _, err := writableUsed(m.Writable.Path); err != nil {
			t.Error(err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, s, snapshotsDir, known)
	wantFiles(t, s, layersDir, len(images))
}

func readPasswd(t *testing.T, fsys *ext4.FS) {
	t.Helper()
	f, err := fsys.Open(manifest.LayerRoot + "/etc/passwd")
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err != nil || st.Size() != 1 {
		t.Errorf("passwd of a committed layer: %+v, %v", st, err)
	}
}
