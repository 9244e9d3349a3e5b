package snapshotter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/manifest"
)

const testSize = 1 << 30

func open(t testing.TB, root string) *Snapshotter {
	t.Helper()
	s, err := New(t.Context(), root, Options{WritableSize: testSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// extractionKey is a key as containerd passes it on from its unpacker.
func extractionKey(name string) string { return "default/1/extract-1-a " + name }

// unpack prepares, applies and commits a layer.
func unpack(t testing.TB, s *Snapshotter, name, parent string, layer []byte) digest.Digest {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), extractionKey(name), parent)
	if err != nil {
		t.Fatal(err)
	}
	diffID := add(t, s, mounts, layer)
	if err := s.Commit(t.Context(), name, extractionKey(name)); err != nil {
		t.Fatal(err)
	}
	return diffID
}

func add(t testing.TB, s *Snapshotter, mounts []mount.Mount, layer []byte) digest.Digest {
	t.Helper()
	err := s.AddLayer(t.Context(), mounts, func(f *os.File) (digest.Digest, error) { return tartest.WriteImage(f, layer) })
	if err != nil {
		t.Fatal(err)
	}
	return digest.FromBytes(layer)
}

func usersLayer(t testing.TB, user string) []byte {
	return tartest.Tar(t, tartest.Dir("etc"), tartest.File("etc/passwd", user))
}

// files lists what is below the root's directory dir.
func files(t testing.TB, s *Snapshotter, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.root, dir))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func wantFiles(t testing.TB, s *Snapshotter, dir string, n int) {
	t.Helper()
	if got := files(t, s, dir); len(got) != n {
		t.Errorf("%s has %d entries %q, want %d", dir, len(got), got, n)
	}
}

func TestPrepareForAContainer(t *testing.T) {
	s := open(t, t.TempDir())
	low := unpack(t, s, "low", "", usersLayer(t, "low"))
	top := unpack(t, s, "top", "low", usersLayer(t, "top"))
	mounts, err := s.Prepare(t.Context(), "default/7/c1", "top")
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 1 || mounts[0].Type != "bind" || !reflect.DeepEqual(mounts[0].Options, []string{"rbind", "rw"}) {
		t.Fatalf("mounts %+v, want one bind mount, rbind and rw", mounts)
	}
	if again, err := s.Mounts(t.Context(), "default/7/c1"); err != nil || !reflect.DeepEqual(again, mounts) {
		t.Errorf("Mounts = %+v, %v, want %+v", again, err, mounts)
	}
	b, err := os.ReadFile(filepath.Join(mounts[0].Source, "etc/passwd"))
	if err != nil || string(b) != "top" {
		t.Errorf("facade's passwd %q, %v, want that of the top layer", b, err)
	}
	m, err := manifest.Find(mounts[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	want := []manifest.Layer{
		{DiffID: low.String(), Path: s.layers.path(low), FSType: "ext4"},
		{DiffID: top.String(), Path: s.layers.path(top), FSType: "ext4"},
	}
	if !reflect.DeepEqual(m.Layers, want) {
		t.Errorf("layers %+v, want %+v", m.Layers, want)
	}
	if m.Writable == nil {
		t.Fatal("no writable image")
	}
	st, err := os.Stat(m.Writable.Path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != testSize {
		t.Errorf("writable image's size %d, want %d", st.Size(), testSize)
	}
	usage, err := s.Usage(t.Context(), "default/7/c1")
	if err != nil || usage.Size <= 0 || usage.Size > testSize/100 {
		t.Errorf("usage %+v, %v: want what is allocated of a sparse image", usage, err)
	}
	if used, err := writableUsed(m.Writable.Path); err != nil || used {
		t.Errorf("a new writable image counts as used: %v, %v", used, err)
	}
}

func TestWritableImagesHaveTheirOwnUUID(t *testing.T) {
	s := open(t, t.TempDir())
	seen := make(map[string]bool)
	for i := range 3 {
		mounts, err := s.Prepare(t.Context(), fmt.Sprint("c", i), "")
		if err != nil {
			t.Fatal(err)
		}
		m, err := manifest.Find(mounts[0].Source)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(m.Writable.Path)
		if err != nil {
			t.Fatal(err)
		}
		var uuid [16]byte // s_uuid
		_, err = f.ReadAt(uuid[:], superblockOffset+0x68)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		seen[string(uuid[:])] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d different UUIDs of 3 images", len(seen))
	}
}

func TestClientCanSizeTheWritableImage(t *testing.T) {
	tests := []struct {
		label string
		want  int64
	}{{"134217728", 128 << 20}, {"1", 0}, {"-1", 0}, {"1G", 0}, {"99999999999999999", 0}}
	for _, tt := range tests {
		t.Run(tt.label, func(t *testing.T) {
			s := open(t, t.TempDir())
			mounts, err := s.Prepare(t.Context(), "c", "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: tt.label}))
			if tt.want == 0 {
				if !errors.Is(err, errdefs.ErrInvalidArgument) {
					t.Errorf("error %v, want ErrInvalidArgument", err)
				}
				wantFiles(t, s, snapshotsDir, 0)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m, err := manifest.Find(mounts[0].Source)
			if err != nil {
				t.Fatal(err)
			}
			if st, err := os.Stat(m.Writable.Path); err != nil || st.Size() != tt.want {
				t.Errorf("size %v, %v, want %d", st.Size(), err, tt.want)
			}
		})
	}
}

func TestViewHasNoWritableImage(t *testing.T) {
	s := open(t, t.TempDir())
	unpack(t, s, "img", "", usersLayer(t, "u"))
	mounts, err := s.View(t.Context(), "v", "img")
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 1 || !reflect.DeepEqual(mounts[0].Options, []string{"rbind", "ro"}) {
		t.Fatalf("mounts %+v, want one, read-only", mounts)
	}
	m, err := manifest.Find(mounts[0].Source)
	if err != nil || m.Writable != nil || len(m.Layers) != 1 {
		t.Errorf("manifest %+v, %v, want one layer and no writable image", m, err)
	}
	if err := s.Commit(t.Context(), "x", "v"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Commit of a view = %v, want ErrFailedPrecondition", err)
	}
}

func TestViewForVolumesHasNoMountsOnlyOnDarwin(t *testing.T) {
	s := open(t, t.TempDir())
	for _, tt := range []struct {
		darwin bool
		key    string
		want   int
	}{
		{true, "default/9//tmp/initialC123", 0},
		{true, "default/9/other", 1},
		{false, "default/9//tmp/initialC123", 1},
	} {
		s.noVolumeView = tt.darwin
		mounts, err := s.View(t.Context(), tt.key, "")
		if err != nil || len(mounts) != tt.want {
			t.Errorf("darwin %v, key %s: %d mounts, %v, want %d", tt.darwin, tt.key, len(mounts), err, tt.want)
		}
		if err := s.Remove(t.Context(), tt.key); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExtractionKeys(t *testing.T) {
	ref := map[string]string{snapshots.LabelSnapshotRef: "sha256:aa"}
	tests := []struct {
		key    string
		labels map[string]string
		want   bool
	}{
		{"extract-123-abc sha256:aa", nil, true},
		{"default/12/extract-123-abc sha256:aa", nil, true},
		{"default/12/c1", nil, false},
		{"default/12/c1", ref, true},
		{"default/12/my-extract-1", nil, false},
		{"extract", nil, false},
		{"a/b/extract-1", nil, false},
		{"default/12/c/extract-1", nil, false},
		{"", nil, false},
	}
	for _, tt := range tests {
		if got := isExtraction(tt.key, tt.labels); got != tt.want {
			t.Errorf("isExtraction(%q, %v) = %v", tt.key, tt.labels, got)
		}
	}
}

func TestExtractionMakesNoWritableImage(t *testing.T) {
	s := open(t, t.TempDir())
	mounts, err := s.Prepare(t.Context(), extractionKey("l"), "")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(mounts[0].Options, []string{"rbind", "rw"}) {
		t.Errorf("options %q: containerd skips Apply unless the mount is rw", mounts[0].Options)
	}
	if got := files(t, s, filepath.Join(snapshotsDir, "1")); !reflect.DeepEqual(got, []string{manifest.FacadeDir}) {
		t.Errorf("snapshot has %q, want the facade only", got)
	}
}

func TestCommitNeedsALayer(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := s.Prepare(t.Context(), extractionKey("l"), ""); err != nil {
		t.Fatal(err)
	}
	err := s.Commit(t.Context(), "l", extractionKey("l"))
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "no layer has been applied") {
		t.Errorf("Commit = %v, want ErrFailedPrecondition and the reason", err)
	}
}

func mountOnce(t testing.TB, path string) {
	t.Helper()
	if err := markMounted(path); err != nil {
		t.Fatal(err)
	}
}

// markMounted makes a writable image look as if a kernel had mounted it.
func markMounted(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 1024)
	if _, err := f.ReadAt(b, superblockOffset); err != nil {
		return err
	}
	b[mountCountOffset] = 1
	sum := ^crc32.Update(0, crc32.MakeTable(crc32.Castagnoli), b[:1020])
	binary.LittleEndian.PutUint32(b[1020:], sum)
	_, err = f.WriteAt(b, superblockOffset)
	return err
}

func TestCommitOfAContainer(t *testing.T) {
	s := open(t, t.TempDir())
	unpack(t, s, "img", "", usersLayer(t, "u"))
	for _, key := range []string{"fresh", "ran"} {
		if _, err := s.Prepare(t.Context(), key, "img"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(t.Context(), "same", "fresh"); err != nil {
		t.Errorf("commit of a container that never ran: %v", err)
	}
	if mounts, err := s.View(t.Context(), "v", "same"); err != nil {
		t.Error(err)
	} else if m, err := manifest.Find(mounts[0].Source); err != nil || len(m.Layers) != 1 {
		t.Errorf("manifest %+v, %v, want the image's one layer", m, err)
	}

	mounts, err := s.Mounts(t.Context(), "ran")
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Find(mounts[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	mountOnce(t, m.Writable.Path)
	err = s.AddLayer(t.Context(), mounts, func(*os.File) (digest.Digest, error) {
		t.Error("a layer is written over a container's changes")
		return "", nil
	})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("AddLayer to a container that ran = %v, want ErrFailedPrecondition", err)
	}
	if err := s.Commit(t.Context(), "img", "ran"); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Commit under a name that is taken = %v, want ErrAlreadyExists", err)
	}
	wantFiles(t, s, layersDir, 1) // nothing of the layer is left
	if left := contentsOfDir(t, filepath.Dir(m.Writable.Path)); !slices.Equal(left, []string{"applevm.json", "fs", "rw.img"}) {
		t.Errorf("after a failed Commit the snapshot has %q", left)
	}
	if err := s.Commit(t.Context(), "changed", "ran"); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, s, layersDir, 2)
	if left := contentsOfDir(t, filepath.Dir(m.Writable.Path)); !slices.Equal(left, []string{"diffid", "fs"}) {
		t.Errorf("the committed snapshot has %q", left)
	}
	if mounts, err = s.Prepare(t.Context(), "on it", "changed"); err != nil {
		t.Fatal(err)
	}
	if m, err := manifest.Find(mounts[0].Source); err != nil || len(m.Layers) != 2 {
		t.Errorf("manifest %+v, %v, want the image's layer and the container's", m, err)
	}
	if usage, err := s.Usage(t.Context(), "changed"); err != nil || usage.Size == 0 {
		t.Errorf("usage %+v, %v", usage, err)
	}
	for _, key := range []string{"on it", "changed"} {
		if err := s.Remove(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	wantFiles(t, s, layersDir, 1)
}

func contentsOfDir(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A snapshot that a crash left half committed is active again, with its changes.
func TestCrashWhileCommitting(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	mounts, err := s.Prepare(t.Context(), "c", "")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(mounts[0].Source)
	mountOnce(t, filepath.Join(dir, writableFile))
	seal, err := s.seal(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if err := seal.record(seal.id, dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	wantFiles(t, s, layersDir, 0)
	if left := contentsOfDir(t, dir); !slices.Equal(left, []string{"applevm.json", "fs", "rw.img"}) {
		t.Errorf("the snapshot has %q", left)
	}
	if err := s.Commit(t.Context(), "committed", "c"); err != nil {
		t.Error(err)
	}
}

// TestOpaqueRootHidesLowerLayers checks that the guest is not given layers that
// overlayfs would show although a higher one hides them.
func TestOpaqueRootHidesLowerLayers(t *testing.T) {
	s := open(t, t.TempDir())
	unpack(t, s, "a", "", usersLayer(t, "low"))
	hiding := unpack(t, s, "b", "a", tartest.Tar(t, tartest.Opaque("."), tartest.Dir("bin")))
	top := unpack(t, s, "c", "b", tartest.Tar(t, tartest.Dir("sbin")))
	mounts, err := s.Prepare(t.Context(), "ctr", "c")
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Find(mounts[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Layers) != 2 || m.Layers[0].DiffID != hiding.String() || m.Layers[1].DiffID != top.String() {
		t.Errorf("layers %+v, want the hiding one and the one above", m.Layers)
	}
	if _, err := os.Lstat(filepath.Join(mounts[0].Source, "etc/passwd")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a hidden passwd shows: %v", err)
	}
}

// TestRebase commits with a parent that was not known when the layer was
// prepared, as containerd does when it unpacks layers in parallel.
func TestRebase(t *testing.T) {
	s := open(t, t.TempDir())
	layers := [][]byte{usersLayer(t, "0"), usersLayer(t, "1"), usersLayer(t, "2")}
	var wg sync.WaitGroup
	for i, layer := range layers {
		mounts, err := s.Prepare(t.Context(), extractionKey(fmt.Sprint(i)), "")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			err := s.AddLayer(context.Background(), mounts, func(f *os.File) (digest.Digest, error) { return tartest.WriteImage(f, layer) })
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	parent := ""
	for i := range layers {
		name := fmt.Sprint(i)
		if err := s.Commit(t.Context(), name, extractionKey(name), snapshots.WithParent(parent)); err != nil {
			t.Fatal(err)
		}
		parent = name
	}
	mounts, err := s.Prepare(t.Context(), "c", parent)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Find(mounts[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	for i, layer := range layers {
		if len(m.Layers) != len(layers) || m.Layers[i].DiffID != digest.FromBytes(layer).String() {
			t.Fatalf("layers %+v are not the chain", m.Layers)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(mounts[0].Source, "etc/passwd")); string(b) != "2" {
		t.Errorf("facade's passwd is %q, want that of the top layer", b)
	}
}

func TestLayerIsStoredOnce(t *testing.T) {
	s := open(t, t.TempDir())
	unpack(t, s, "a", "", usersLayer(t, "a"))
	unpack(t, s, "b", "", usersLayer(t, "b"))
	shared := usersLayer(t, "shared")
	unpack(t, s, "a1", "a", shared)
	unpack(t, s, "b1", "b", shared)
	wantFiles(t, s, layersDir, 3)
	for _, step := range []struct {
		remove string
		left   int
	}{{"a1", 3}, {"a", 2}, {"b1", 1}, {"b", 0}} {
		if err := s.Remove(t.Context(), step.remove); err != nil {
			t.Fatal(err)
		}
		wantFiles(t, s, layersDir, step.left)
	}
	wantFiles(t, s, snapshotsDir, 0)
}

func TestPrepareOfAPresentLayerSkipsApply(t *testing.T) {
	s := open(t, t.TempDir())
	layer := usersLayer(t, "u")
	diffID := unpack(t, s, "a", "", layer)
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:    "sha256:chain",
		snapshots.LabelSnapshotDiffID: diffID.String(),
	})
	mounts, err := s.Prepare(t.Context(), extractionKey("b"), "", labels)
	if err != nil {
		t.Fatal(err)
	}
	if !mounts[0].ReadOnly() {
		t.Errorf("options %q, want ro", mounts[0].Options)
	}
	if again, err := s.Mounts(t.Context(), extractionKey("b")); err != nil || !reflect.DeepEqual(again, mounts) {
		t.Errorf("Mounts = %+v, %v, want %+v", again, err, mounts)
	}
	add(t, s, mounts, layer) // an older client applies none the less
	if err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), "b", extractionKey("b")); err != nil {
		t.Fatal(err)
	}
	if usage, err := s.Usage(t.Context(), "b"); err != nil || usage.Size <= 0 {
		t.Errorf("usage %+v, %v", usage, err)
	}
	wantFiles(t, s, layersDir, 1)
	if err := s.Remove(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, s, layersDir, 0)
}

func TestPrepareWithAStrangeDiffIDLabel(t *testing.T) {
	s := open(t, t.TempDir())
	for i, label := range []string{"sha256:../../x", "md5:aa", "", "sha256:" + strings.Repeat("a", 64)} {
		mounts, err := s.Prepare(t.Context(), extractionKey(fmt.Sprint(i)), "",
			snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotDiffID: label}))
		if err != nil {
			t.Fatal(err)
		}
		if mounts[0].ReadOnly() {
			t.Errorf("label %q: the layer is taken for present", label)
		}
	}
}

func TestAddLayerFailureLeavesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	mounts, err := s.Prepare(t.Context(), extractionKey("l"), "")
	if err != nil {
		t.Fatal(err)
	}
	fault := errors.New("bad tar")
	err = s.AddLayer(t.Context(), mounts, func(f *os.File) (digest.Digest, error) {
		if _, err := f.WriteString("half an image"); err != nil {
			t.Error(err)
		}
		return "", fault
	})
	if !errors.Is(err, fault) {
		t.Errorf("AddLayer = %v, want the writer's error", err)
	}
	wantFiles(t, s, layersDir, 0)
	if got := files(t, s, filepath.Join(snapshotsDir, "1")); !reflect.DeepEqual(got, []string{manifest.FacadeDir}) {
		t.Errorf("snapshot has %q", got)
	}
}

func TestAddLayerRefuses(t *testing.T) {
	s := open(t, t.TempDir())
	unpack(t, s, "img", "", usersLayer(t, "u"))
	view, err := s.View(t.Context(), "v", "img")
	if err != nil {
		t.Fatal(err)
	}
	taken, err := s.Prepare(t.Context(), extractionKey("taken"), "")
	if err != nil {
		t.Fatal(err)
	}
	add(t, s, taken, usersLayer(t, "first"))
	gone := []mount.Mount{{Type: "bind", Source: filepath.Join(s.snapshotDir("99"), manifest.FacadeDir)}}
	tests := []struct {
		name   string
		mounts []mount.Mount
		want   error
	}{
		{"no mounts", nil, errdefs.ErrNotFound},
		{"another directory", []mount.Mount{{Type: "bind", Source: "/tmp"}}, errdefs.ErrNotFound},
		{"outside by ..", []mount.Mount{{Type: "bind", Source: s.root + "/snapshots/../fs"}}, errdefs.ErrNotFound},
		{"no such snapshot", gone, errdefs.ErrNotFound},
		{"a view", view, errdefs.ErrFailedPrecondition},
		{"a second layer", taken, errdefs.ErrFailedPrecondition},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := s.AddLayer(t.Context(), tt.mounts, func(f *os.File) (digest.Digest, error) {
				return tartest.WriteImage(f, usersLayer(t, "second"))
			})
			if !errors.Is(err, tt.want) {
				t.Errorf("AddLayer = %v, want %v", err, tt.want)
			}
		})
	}
	wantFiles(t, s, layersDir, 2)
}

// TestAddLayerToAContainer applies a layer to a snapshot that was prepared
// without saying that it is for an extraction.
func TestAddLayerToAContainer(t *testing.T) {
	s := open(t, t.TempDir())
	unpack(t, s, "img", "", usersLayer(t, "low"))
	mounts, err := s.Prepare(t.Context(), "c", "img")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time changes nothing
		add(t, s, mounts, usersLayer(t, "high"))
	}
	m, err := manifest.Find(mounts[0].Source)
	if err != nil || len(m.Layers) != 2 || m.Writable == nil {
		t.Errorf("manifest %+v, %v, want two layers and a writable image", m, err)
	}
	if b, _ := os.ReadFile(filepath.Join(mounts[0].Source, "etc/passwd")); string(b) != "high" {
		t.Errorf("facade's passwd is %q", b)
	}
	if err := s.Commit(t.Context(), "top", "c"); err != nil {
		t.Fatal(err)
	}
	view, err := s.View(t.Context(), "v", "top")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := manifest.Find(view[0].Source); err != nil || len(m.Layers) != 2 {
		t.Errorf("manifest %+v, %v, want two layers", m, err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	if _, err := New(t.Context(), root, Options{WritableSize: testSize}); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), root) {
		t.Errorf("New = %v, want ErrUnavailable with the root", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, root)
}

func TestWalkOfAnEmptyStore(t *testing.T) {
	s := open(t, t.TempDir())
	err := s.Walk(t.Context(), func(context.Context, snapshots.Info) error {
		t.Error("there is a snapshot")
		return nil
	})
	if err != nil {
		t.Errorf("Walk = %v", err)
	}
	if err := s.Walk(t.Context(), nil, "bad=="); err == nil {
		t.Error("a bad filter is no error")
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Errorf("Cleanup = %v", err)
	}
}

func TestPrepareOfAnUnknownParent(t *testing.T) {
	s := open(t, t.TempDir())
	for _, key := range []string{"c", extractionKey("l")} {
		if _, err := s.Prepare(t.Context(), key, "none"); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "none") {
			t.Errorf("Prepare(%q) = %v, want ErrNotFound with the parent's name", key, err)
		}
	}
	wantFiles(t, s, snapshotsDir, 0)
}

func TestPrepareTwiceOfOneKey(t *testing.T) {
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 8 {
		wg.Go(func() {
			_, err := s.Prepare(context.Background(), "c", "")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !errors.Is(err, errdefs.ErrAlreadyExists) {
				t.Errorf("Prepare = %v, want ErrAlreadyExists", err)
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("%d of the calls made the snapshot", made)
	}
	wantFiles(t, s, snapshotsDir, 1)
}

// TestConcurrentUse lets clients apply the same layer, prepare, remove and
// clean up at once.
func TestConcurrentUse(t *testing.T) {
	s := open(t, t.TempDir())
	shared := usersLayer(t, "shared")
	unpack(t, s, "base", "", usersLayer(t, "base"))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx := context.Background()
			for j := range 4 {
				name := fmt.Sprintf("l-%d-%d", i, j)
				mounts, err := s.Prepare(ctx, extractionKey(name), "base")
				if err != nil {
					t.Error(err)
					return
				}
				err = s.AddLayer(ctx, mounts, func(f *os.File) (digest.Digest, error) { return tartest.WriteImage(f, shared) })
				if err == nil {
					err = s.Commit(ctx, name, extractionKey(name))
				}
				if err == nil {
					_, err = s.Prepare(ctx, "c"+name, name)
				}
				if err == nil && j%2 == 0 {
					err = errors.Join(s.Remove(ctx, "c"+name), s.Remove(ctx, name))
				}
				if err == nil && j == 1 {
					err = s.Cleanup(ctx)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	wantFiles(t, s, layersDir, 2)
	wantFiles(t, s, snapshotsDir, 1+8*2*2)
}
