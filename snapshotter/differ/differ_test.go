package differ

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter"
	"github.com/applevm/applevm/snapshotter/ext4"
)

// rig is a differ over a real content store and a real snapshotter.
type rig struct {
	*Differ
	root  string
	sn    *snapshotter.Snapshotter
	store content.Store
	// leased has the leases that were made.
	leased *leaser
}

// leaser notes the leases that it makes.
type leaser struct{ made []leases.Lease }

func (l *leaser) Create(_ context.Context, opts ...leases.Opt) (leases.Lease, error) {
	var made leases.Lease
	for _, o := range opts {
		if err := o(&made); err != nil {
			return made, err
		}
	}
	l.made = append(l.made, made)
	return made, nil
}

func newRig(t *testing.T) rig {
	t.Helper()
	store, err := local.NewLabeledStore(t.TempDir(), &labelStore{labels: map[digest.Digest]map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	sn, err := snapshotter.New(t.Context(), root, snapshotter.Options{WritableSize: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sn.Close() })
	leased := &leaser{}
	return rig{Differ: New(sn, store, leased), root: root, sn: sn, store: store, leased: leased}
}

// labelStore keeps labels in memory, as containerd's metadata does on disk.
type labelStore struct {
	mu     sync.Mutex
	labels map[digest.Digest]map[string]string
}

func (s *labelStore) Get(d digest.Digest) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.labels[d]), nil
}

func (s *labelStore) Set(d digest.Digest, labels map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.labels[d] = maps.Clone(labels)
	return nil
}

func (s *labelStore) Update(d digest.Digest, update map[string]string) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.labels[d] == nil {
		s.labels[d] = map[string]string{}
	}
	maps.Copy(s.labels[d], update)
	return maps.Clone(s.labels[d]), nil
}

// blob puts b into the content store.
func (r rig) blob(t *testing.T, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(t.Context(), r.store, desc.Digest.String(), bytes.NewReader(b), desc); err != nil {
		t.Fatal(err)
	}
	return desc
}

const extractKey = "extract-1-a layer"

func (r rig) prepare(t *testing.T) []mount.Mount {
	t.Helper()
	mounts, err := r.sn.Prepare(t.Context(), extractKey, "")
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

// images lists the images of layers.
func (r rig) images(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(r.root, "layers", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func layer(t *testing.T) []byte {
	return tartest.Tar(t, tartest.Dir("etc"), tartest.File("etc/motd", strings.Repeat("hello ", 50_000)))
}

func TestApply(t *testing.T) {
	plain := layer(t)
	padded := append(bytes.Clone(plain), make([]byte, 1<<20)...)
	two := append(tartest.Gzip(t, plain[:700]), tartest.Gzip(t, plain[700:])...)
	skippable := append([]byte{0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}, tartest.Zstd(t, plain)...)
	tests := []struct {
		name, mediaType string
		blob, tar       []byte
	}{
		{"plain", ocispec.MediaTypeImageLayer, plain, plain},
		{"gzip", ocispec.MediaTypeImageLayerGzip, tartest.Gzip(t, plain), plain},
		{"gzip of docker", images.MediaTypeDockerSchema2LayerGzip, tartest.Gzip(t, plain), plain},
		{"gzip in members", ocispec.MediaTypeImageLayerGzip, two, plain},
		{"zstd", ocispec.MediaTypeImageLayerZstd, tartest.Zstd(t, plain), plain},
		{"zstd after a skippable frame", ocispec.MediaTypeImageLayerZstd, skippable, plain},
		{"plain labelled gzip", ocispec.MediaTypeImageLayerGzip, plain, plain},
		{"padding after the end counts", ocispec.MediaTypeImageLayerGzip, tartest.Gzip(t, padded), padded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			desc := r.blob(t, tt.mediaType, tt.blob)
			var progress []int64
			got, err := r.Apply(t.Context(), desc, r.prepare(t), diff.WithProgress(func(_ ocispec.Descriptor, n int64) { progress = append(progress, n) }))
			if err != nil {
				t.Fatal(err)
			}
			want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tt.tar), Size: int64(len(tt.tar))}
			if got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if len(progress) < 2 || progress[0] != 0 || progress[len(progress)-1] != desc.Size {
				t.Errorf("progress %v does not go from 0 to %d", progress, desc.Size)
			}
			if err := r.sn.Commit(t.Context(), "layer", extractKey); err != nil {
				t.Fatal(err)
			}
			checkContent(t, r, want.Digest)
		})
	}
}

func checkContent(t *testing.T, r rig, diffID digest.Digest) {
	t.Helper()
	path := filepath.Join(r.root, "layers", "sha256-"+diffID.Encoded()+".ext4")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	b, err := fs.ReadFile(fsys, manifest.LayerRoot+"/etc/motd")
	if err != nil || string(b) != strings.Repeat("hello ", 50_000) {
		t.Errorf("file of the layer has %d bytes, %v", len(b), err)
	}
}

func TestApplyRefusesCorruptLayers(t *testing.T) {
	plain := layer(t)
	zipped, zstd := tartest.Gzip(t, plain), tartest.Zstd(t, plain)
	flipped := bytes.Clone(zipped)
	flipped[len(flipped)-6] ^= 1 // the checksum
	badHeader := bytes.Clone(plain)
	badHeader[148] ^= 1 // the first header's checksum
	tests := []struct {
		name, mediaType string
		blob            []byte
		want            string
	}{
		{"gzip cut in the middle", ocispec.MediaTypeImageLayerGzip, zipped[:len(zipped)/2], "truncated"},
		{"gzip without its checksum", ocispec.MediaTypeImageLayerGzip, zipped[:len(zipped)-8], "truncated"},
		{"gzip with a wrong checksum", ocispec.MediaTypeImageLayerGzip, flipped, "checksum"},
		{"garbage after gzip", ocispec.MediaTypeImageLayerGzip, append(bytes.Clone(zipped), "garbage"...), ""},
		{"zstd cut in the middle", ocispec.MediaTypeImageLayerZstd, zstd[:len(zstd)/2], "truncated"},
		{"tar cut in a file", ocispec.MediaTypeImageLayer, plain[:2000], "truncated"},
		{"no tar", ocispec.MediaTypeImageLayer, []byte(strings.Repeat("no tar ", 1000)), ""},
		{"bad header checksum", ocispec.MediaTypeImageLayer, badHeader, ""},
		{"name leaves the layer", ocispec.MediaTypeImageLayer, tartest.Tar(t, tartest.File("../../etc/passwd", "x")), ""},
		{"parent is a link out", ocispec.MediaTypeImageLayer, tartest.Tar(t, tartest.Symlink("etc", "/tmp"), tartest.File("etc/passwd", "x")), ""},
		{"not a layer", "application/vnd.example", plain, "media type"},
		{"encrypted", ocispec.MediaTypeImageLayerGzip + "+encrypted", zipped, "media type"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			desc := r.blob(t, tt.mediaType, tt.blob)
			_, err := r.Apply(t.Context(), desc, r.prepare(t))
			if err == nil {
				t.Fatal("the layer was applied")
			}
			if !strings.Contains(err.Error(), desc.Digest.String()) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q: want one line with the layer's digest and %q", err, tt.want)
			}
			if errdefs.IsNotImplemented(err) {
				t.Errorf("error %q sends containerd on to its next differ", err)
			}
			if left := r.images(t); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if err := r.sn.Commit(t.Context(), "layer", extractKey); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("Commit without a layer = %v", err)
			}
		})
	}
}

func TestApplyLeavesOtherSnapshottersAlone(t *testing.T) {
	r := newRig(t)
	desc := r.blob(t, ocispec.MediaTypeImageLayer, layer(t))
	ours := r.prepare(t)
	other := mount.Mount{Type: "bind", Source: t.TempDir(), Options: []string{"rw"}}
	for name, mounts := range map[string][]mount.Mount{
		"none":            nil,
		"bind":            {other},
		"overlay":         {{Type: "overlay", Source: "overlay", Options: []string{"upperdir=/a"}}},
		"last is another": append(ours[:1:1], other),
	} {
		if _, err := r.Apply(t.Context(), desc, mounts); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: Apply = %v, want ErrNotImplemented", name, err)
		}
		if _, err := r.Compare(t.Context(), mounts, mounts); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: Compare = %v, want ErrNotImplemented", name, err)
		}
	}
	if _, err := r.Compare(t.Context(), []mount.Mount{other}, ours); err == nil || errdefs.IsNotImplemented(err) {
		t.Errorf("Compare of ours with another's = %v: another differ would compare the facades", err)
	}
}

func TestApplyOfAMissingBlob(t *testing.T) {
	r := newRig(t)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("none"), Size: 4}
	if _, err := r.Apply(t.Context(), desc, r.prepare(t)); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), desc.Digest.String()) {
		t.Errorf("Apply = %v, want ErrNotFound with the digest", err)
	}
	have := r.blob(t, ocispec.MediaTypeImageLayer, layer(t))
	have.Size++
	if _, err := r.Apply(t.Context(), have, r.prepareOther(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Apply of a blob that is too short = %v, want ErrFailedPrecondition", err)
	}
}

func (r rig) prepareOther(t *testing.T) []mount.Mount {
	t.Helper()
	mounts, err := r.sn.Prepare(t.Context(), extractKey+"2", "")
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

// endless is a layer that never ends: zeros follow the end of the tar.
type endless struct {
	tar    io.Reader
	cancel func()
	n      int
}

func (e *endless) Read(p []byte) (int, error) {
	if n, _ := e.tar.Read(p); n > 0 {
		return n, nil
	}
	if e.n++; e.n == 3 {
		e.cancel()
	}
	clear(p)
	return len(p), nil
}

func TestConvertEndsWithItsContext(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	_, err = Convert(ctx, ocispec.MediaTypeImageLayer, &endless{tar: bytes.NewReader(layer(t)), cancel: cancel}, f, ConvertOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Convert = %v, want context.Canceled", err)
	}
}

func TestConvertIsDeterministic(t *testing.T) {
	plain := layer(t)
	var first []byte
	for _, blob := range [][]byte{plain, tartest.Gzip(t, plain), tartest.Zstd(t, plain)} {
		path := filepath.Join(t.TempDir(), "image")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Convert(t.Context(), ocispec.MediaTypeImageLayerGzip, bytes.NewReader(blob), f, ConvertOptions{})
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		} else if !bytes.Equal(first, b) {
			t.Error("the image depends on the compression")
		}
	}
}

// FuzzConvert feeds blobs as a registry might: whatever they hold, there is an
// error or an image, and no panic.
func FuzzConvert(f *testing.F) {
	plain := tartest.Tar(f, tartest.Dir("etc"), tartest.File("etc/passwd", "root"), tartest.Whiteout("gone"), tartest.Symlink("l", "etc"))
	for _, seed := range [][]byte{plain, tartest.Gzip(f, plain), tartest.Zstd(f, plain), {0x1f, 0x8b, 8}, {}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		out, err := os.Create(filepath.Join(t.TempDir(), "image"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if res, err := Convert(t.Context(), ocispec.MediaTypeImageLayer, bytes.NewReader(blob), out, ConvertOptions{}); err == nil && res.DiffID == "" {
			t.Error("no error and no diffID")
		}
	})
}
