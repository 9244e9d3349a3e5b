package differ

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/internal/treelist"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/union"
)

// guestEnv makes the test binary do in namespaces of its own what a guest does.
const guestEnv = "APPLEVM_DIFFER_GUEST"

func TestMain(m *testing.M) {
	if job := os.Getenv(guestEnv); job != "" {
		if err := guestMain(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// guestJob says what the guest mounts, and does there.
type guestJob struct {
	Layers   []string // images, lowest first
	Writable string   // image; empty for a look at the layers
	Change   bool     // make the changes of change
	Dir      string   // for mount points
}

// guest stacks images as a guest does, and lists what the container sees. The
// mounts are in a mount namespace that ends with the process.
func guest(t *testing.T, job guestJob) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts images: run it as root")
	}
	job.Dir = t.TempDir()
	b, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), guestEnv+"="+string(b))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func guestMain(arg string) error {
	var job guestJob
	if err := json.Unmarshal([]byte(arg), &job); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	loop := func(image, name, options string) (string, error) {
		dir := filepath.Join(job.Dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
		// Others look for a free loop device at the same time: mount(8) gives up then.
		m := mount.Mount{Type: "ext4", Source: image, Options: append([]string{"loop"}, strings.Split(options, ",")...)}
		return dir, m.Mount(dir)
	}
	var lower []string
	for i, l := range job.Layers {
		dir, err := loop(l, fmt.Sprint("l", i), "ro")
		if err != nil {
			return err
		}
		lower = append([]string{filepath.Join(dir, manifest.LayerRoot)}, lower...)
	}
	view := filepath.Join(job.Dir, "m")
	// An empty layer at the bottom, so that there are always two.
	empty := filepath.Join(job.Dir, "e")
	if err := errors.Join(os.Mkdir(view, 0o755), os.Mkdir(empty, 0o755)); err != nil {
		return err
	}
	data := "redirect_dir=nofollow,metacopy=off,index=off,lowerdir=" + strings.Join(append(lower, empty), ":")
	if job.Writable != "" {
		dir, err := loop(job.Writable, "w", "rw")
		if err != nil {
			return err
		}
		upper, work := filepath.Join(dir, api.UpperDir), filepath.Join(dir, "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		data += ",upperdir=" + upper + ",workdir=" + work
	}
	if err := unix.Mount("overlay", view, "overlay", 0, data); err != nil {
		return fmt.Errorf("overlay %s: %w", data, err)
	}
	if job.Change {
		if err := change(view); err != nil {
			return err
		}
	}
	lines, err := treelist.List(view, treelist.Options{})
	if err != nil {
		return err
	}
	_, err = fmt.Println(strings.Join(lines, "\n"))
	if err == nil {
		err = unix.Unmount(view, 0)
	}
	if job.Writable != "" && err == nil {
		err = unix.Unmount(filepath.Join(job.Dir, "w"), 0)
	}
	return err
}

// change does to a container's files what containers do.
func change(root string) error {
	p := func(name string) string { return filepath.Join(root, name) }
	write := func(name, content string) error { return os.WriteFile(p(name), []byte(content), 0o640) }
	return errors.Join(
		os.Remove(p("etc/gone")),
		os.RemoveAll(p("tree")),
		os.RemoveAll(p("again")), os.Mkdir(p("again"), 0o750), write("again/new", "n"),
		os.RemoveAll(p("file2dir")), os.Mkdir(p("file2dir"), 0o755), write("file2dir/x", "x"),
		os.RemoveAll(p("dir2file")), write("dir2file", "f"),
		write("etc/changed", "changed"),
		os.Chmod(p("etc/mode"), 0o4755),
		os.Lchown(p("etc/owner"), 70000, 80000),
		os.MkdirAll(p("new/deep/er"), 0o700), write("new/deep/er/file", strings.Repeat("data ", 100_000)),
		write("new/one", "linked"), os.Link(p("new/one"), p("new/two")), os.Link(p("new/one"), p("etc/three")),
		os.Link(p("etc/linked"), p("etc/linked-too")),
		os.Symlink("../etc/changed", p("new/link")),
		os.Symlink(strings.Repeat("long/", 100), p("new/longlink")),
		unix.Mknod(p("new/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mkfifo(p("new/fifo"), 0o600),
		unix.Setxattr(p("new/one"), "user.hello", []byte("world"), 0),
		unix.Setxattr(p("etc/xattr"), "user.more", bytes.Repeat([]byte("x"), 1000), 0),
		unix.Setxattr(p("new"), "trusted.mine", []byte("t"), 0),
		unix.Setxattr(p("etc/mode"), "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0),
		os.WriteFile(p("new/\xff\xfe name"), nil, 0o600),
		os.Chmod(root, 0o711),
		os.Chtimes(p("etc/changed"), time.Time{}, time.Unix(1_000_000_000, 987_654_321)),
	)
}

func baseLayer(t *testing.T) []byte {
	return tartest.Tar(t,
		tartest.Dir("etc"), tartest.File("etc/gone", "g"), tartest.File("etc/changed", "before"), tartest.File("etc/mode", "m"),
		tartest.File("etc/owner", "o"), tartest.File("etc/linked", "l"), tartest.Link("etc/linked2", "etc/linked"), tartest.File("etc/xattr", "x"),
		tartest.File("etc/same", "same"), tartest.Dir("tree"), tartest.Dir("tree/sub"), tartest.File("tree/sub/f", "f"),
		tartest.Dir("again"), tartest.File("again/old", "o"), tartest.File("file2dir", "f"), tartest.Dir("dir2file"), tartest.File("dir2file/x", "x"))
}

// container makes a base image of one layer and a container's snapshot on it.
func (r rig) container(t *testing.T) (lower, upper []mount.Mount, base digest.Digest) {
	t.Helper()
	desc, err := r.Apply(t.Context(), r.blob(t, ocispec.MediaTypeImageLayer, baseLayer(t)), r.prepare(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.sn.Commit(t.Context(), "base", extractKey); err != nil {
		t.Fatal(err)
	}
	if upper, err = r.sn.Prepare(t.Context(), "container", "base"); err != nil {
		t.Fatal(err)
	}
	if lower, err = r.sn.View(t.Context(), "lower", "base"); err != nil {
		t.Fatal(err)
	}
	return lower, upper, desc.Digest
}

func (r rig) image(d digest.Digest) string {
	return filepath.Join(r.root, "layers", "sha256-"+d.Encoded()+".ext4")
}

func writable(mounts []mount.Mount) string {
	return filepath.Join(filepath.Dir(mounts[0].Source), "rw.img")
}

// A layer made of a container's changes shows, over the container's image, what
// the container saw.
func TestCompareShowsWhatTheContainerSaw(t *testing.T) {
	for _, mediaType := range []string{"", ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerZstd} {
		t.Run(mediaType, func(t *testing.T) {
			r := newRig(t)
			lower, upper, base := r.container(t)
			want := guest(t, guestJob{Layers: []string{r.image(base)}, Writable: writable(upper), Change: true})
			var opts []diff.Opt
			if mediaType != "" {
				opts = append(opts, diff.WithMediaType(mediaType))
			}
			desc, err := r.Compare(t.Context(), lower, upper, opts...)
			if err != nil {
				t.Fatal(err)
			}
			if mediaType == "" {
				mediaType = ocispec.MediaTypeImageLayerGzip
			}
			info, err := r.store.Info(t.Context(), desc.Digest)
			if err != nil || desc.MediaType != mediaType || info.Size != desc.Size {
				t.Errorf("descriptor %+v, in the store %+v, %v", desc, info, err)
			}
			mounts, err := r.sn.Prepare(t.Context(), "extract-2-changes", "base")
			if err != nil {
				t.Fatal(err)
			}
			applied, err := r.Apply(t.Context(), desc, mounts)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Labels[labels.LabelUncompressed]; got != applied.Digest.String() {
				t.Errorf("label %s is %q, the layer's diffID %s", labels.LabelUncompressed, got, applied.Digest)
			}
			got := guest(t, guestJob{Layers: []string{r.image(base), r.image(applied.Digest)}})
			for _, l := range missing(want, got) {
				t.Error("lost: ", l)
			}
			for _, l := range missing(got, want) {
				t.Error("added:", l)
			}
			if out, err := exec.Command("e2fsck", "-fn", r.image(applied.Digest)).CombinedOutput(); err != nil {
				t.Errorf("e2fsck: %v: %s", err, out)
			}
			if mediaType != ocispec.MediaTypeImageLayer {
				return
			}
			// The snapshot that the container ran on, committed, has the same layer.
			if err := r.sn.Commit(t.Context(), "committed", "container"); err != nil {
				t.Fatal(err)
			}
			view, err := r.sn.View(t.Context(), "of the committed", "committed")
			if err != nil {
				t.Fatal(err)
			}
			again, err := r.Compare(t.Context(), lower, view, diff.WithMediaType(mediaType))
			if err != nil || again.Digest != desc.Digest {
				t.Errorf("Compare with the committed snapshot = %v, %v, before it was committed %v", again.Digest, err, desc.Digest)
			}
		})
	}
}

// missing returns what is in a and not in b.
func missing(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(l string) bool { return slices.Contains(b, l) })
}

// A new layer is kept until its client has named it, and not for ever.
func TestCompareHoldsALease(t *testing.T) {
	r := newRig(t)
	lower, upper, _ := r.container(t)
	if _, err := r.Compare(t.Context(), lower, upper); err != nil {
		t.Fatal(err)
	}
	if len(r.leased.made) != 1 || r.leased.made[0].ID == "" || r.leased.made[0].Labels["containerd.io/gc.expire"] == "" {
		t.Errorf("leases %+v, want one that expires", r.leased.made)
	}
	if _, err := r.Compare(leases.WithLease(t.Context(), "the client's"), lower, upper); err != nil {
		t.Fatal(err)
	}
	if len(r.leased.made) != 1 {
		t.Errorf("leases %+v beside the client's own", r.leased.made)
	}
}

func TestCompareOfAnUntouchedContainerIsEmpty(t *testing.T) {
	r := newRig(t)
	lower, upper, _ := r.container(t)
	desc, err := r.Compare(t.Context(), lower, upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	if err != nil {
		t.Fatal(err)
	}
	if names := r.names(t, desc); len(names) > 0 {
		t.Errorf("the layer has %q", names)
	}
}

func (r rig) names(t *testing.T, desc ocispec.Descriptor) []string {
	t.Helper()
	b, err := content.ReadBlob(t.Context(), r.store, desc)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// An image's layers over those of another are a difference too.
func TestCompareOfLayers(t *testing.T) {
	r := newRig(t)
	lower, _, _ := r.container(t)
	mounts, err := r.sn.Prepare(t.Context(), "extract-2-x", "base")
	if err != nil {
		t.Fatal(err)
	}
	blob := r.blob(t, ocispec.MediaTypeImageLayer, tartest.Tar(t, tartest.File("etc/new", "n"), tartest.Whiteout("etc/gone")))
	if _, err := r.Apply(t.Context(), blob, mounts); err != nil {
		t.Fatal(err)
	}
	if err := r.sn.Commit(t.Context(), "top", "extract-2-x"); err != nil {
		t.Fatal(err)
	}
	upper, err := r.sn.View(t.Context(), "upper", "top")
	if err != nil {
		t.Fatal(err)
	}
	desc, err := r.Compare(t.Context(), lower, upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.names(t, desc), []string{"etc/", "etc/.wh.gone", "etc/new"}; !slices.Equal(got, want) {
		t.Errorf("the layer has %q, want %q", got, want)
	}
	if desc, err = r.Compare(t.Context(), nil, upper, diff.WithMediaType(ocispec.MediaTypeImageLayer)); err != nil {
		t.Fatal(err)
	}
	if got := r.names(t, desc); !slices.Contains(got, "tree/sub/f") || slices.Contains(got, "etc/gone") || slices.Contains(got, "etc/.wh.gone") {
		t.Errorf("against nothing the layer has %q", got)
	}
	if _, err := r.Compare(t.Context(), upper, lower); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("upside down: %v", err)
	}
}

func TestCompareRefuses(t *testing.T) {
	r := newRig(t)
	lower, upper, _ := r.container(t)
	if _, err := r.Compare(t.Context(), lower, upper, diff.WithMediaType("text/plain")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("media type: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Compare(ctx, lower, upper); err == nil {
		t.Error("a cancelled call succeeded")
	}
	list, err := r.store.ListStatuses(t.Context())
	if err != nil || len(list) > 0 {
		t.Errorf("left in the content store: %v, %v", list, err)
	}
}

// A snapshot that is written to all the time is not read as if it stood still.
func TestCompareOfASnapshotThatChanges(t *testing.T) {
	r := newRig(t)
	lower, upper, base := r.container(t)
	guest(t, guestJob{Layers: []string{r.image(base)}, Writable: writable(upper), Change: true})
	f, err := os.OpenFile(writable(upper), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.layers = busy{r.layers, f}
	_, err = r.Compare(t.Context(), lower, upper)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "pause") {
		t.Errorf("error %v", err)
	}
	list, err := r.store.ListStatuses(t.Context())
	if err != nil || len(list) > 0 {
		t.Errorf("left in the content store: %v, %v", list, err)
	}
}

// busy writes to a snapshot while it is read.
type busy struct {
	Layers
	f *os.File
}

func (b busy) Changes(ctx context.Context, lower, upper []mount.Mount, read func(upper, lower []union.Place) error) error {
	return b.Layers.Changes(ctx, lower, upper, func(upper, lower []union.Place) error {
		time.Sleep(20 * time.Millisecond) // past the clock's grain
		if _, err := b.f.WriteAt([]byte{0}, 1<<20); err != nil {
			return err
		}
		return read(upper, lower)
	})
}
