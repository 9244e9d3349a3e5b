package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter"
	"github.com/applevm/applevm/snapshotter/differ"
	"github.com/applevm/applevm/snapshotter/ext4"
)

// TestSuite runs the whole of containerd's suite for snapshotters.
//
// The suite mounts what Prepare and View return and reads and writes there,
// while our mount is the facade and the files are in images that only a guest
// mounts. So the suite gets a snapshotter that adds what a guest does: the
// mount is a directory with what the manifest's images show, stacked, and
// Commit first makes the changes in that directory a layer, as a client does
// by Diff and Apply. All metadata, images and manifests are the real ones.
//
// It needs root because the suite calls mount(2).
func TestSuite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containerd's suite calls mount(2), which needs root")
	}
	testsuite.SnapshotterSuite(t, "applevm", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		sn, err := snapshotter.New(ctx, root, snapshotter.Options{WritableSize: 1 << 30})
		if err != nil {
			return nil, nil, err
		}
		work, err := os.MkdirTemp("", "suite")
		if err != nil {
			return nil, nil, err
		}
		g := &guestView{Snapshotter: sn, work: work, dirs: make(map[string]dirs)}
		return g, func() error { return errors.Join(sn.Close(), os.RemoveAll(work)) }, nil
	})
}

// guestView is a Snapshotter whose mounts show the files of the images.
type guestView struct {
	*snapshotter.Snapshotter
	work string

	mu   sync.Mutex
	dirs map[string]dirs
}

// dirs are a snapshot's files as they were when it was made and as they are.
type dirs struct{ before, now string }

func (g *guestView) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := g.Snapshotter.Prepare(ctx, key, parent, opts...)
	return g.show(key, mounts, err)
}

func (g *guestView) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := g.Snapshotter.View(ctx, key, parent, opts...)
	return g.show(key, mounts, err)
}

func (g *guestView) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := g.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	mounts[0].Source = g.dirs[key].now
	return mounts, nil
}

// show replaces the facade by the files.
func (g *guestView) show(key string, mounts []mount.Mount, err error) ([]mount.Mount, error) {
	if err != nil {
		return nil, err
	}
	m, err := manifest.Find(mounts[0].Source)
	if err != nil {
		return nil, err
	}
	base, err := os.MkdirTemp(g.work, "")
	if err != nil {
		return nil, err
	}
	d := dirs{before: filepath.Join(base, "before"), now: filepath.Join(base, "now")}
	if err := os.Mkdir(d.now, 0o755); err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		if err := stack(d.now, l.Path); err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.DiffID, err)
		}
	}
	if out, err := exec.Command("cp", "-a", d.now, d.before).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy of the files: %w: %s", err, out)
	}
	g.mu.Lock()
	g.dirs[key] = d
	g.mu.Unlock()
	mounts[0].Source = d.now
	return mounts, nil
}

func (g *guestView) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	mounts, err := g.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return err
	}
	g.mu.Lock()
	d := g.dirs[key]
	g.mu.Unlock()
	r, w := io.Pipe()
	go func() { w.CloseWithError(archive.WriteDiff(ctx, w, d.before, d.now)) }()
	err = g.AddLayer(ctx, mounts, func(f *os.File) (digest.Digest, error) {
		res, err := differ.Convert(ctx, ocispec.MediaTypeImageLayer, r, f, differ.ConvertOptions{})
		return res.DiffID, err
	})
	if err != nil {
		return err
	}
	return g.Snapshotter.Commit(ctx, name, key, opts...)
}

// stack puts the files of a layer's image over what is in dir, as overlayfs
// shows them.
func stack(dir, image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	fsys, err := ext4.Open(f, st.Size())
	if err != nil {
		return err
	}
	links := make(map[uint32]string)
	return put(fsys, manifest.LayerRoot, dir, links)
}

// put puts one file of a layer, and what is below it, at the path dst.
func put(fsys *ext4.FS, name, dst string, links map[uint32]string) error {
	info, err := fsys.Lstat(name)
	if err != nil {
		return err
	}
	st := info.Sys().(*ext4.Stat)
	xattrs, err := fsys.Xattrs(name)
	if err != nil {
		return err
	}
	old, err := os.Lstat(dst)
	exists := err == nil
	if exists && (!old.IsDir() || !info.IsDir() || string(xattrs["trusted.overlay.opaque"]) == "y") {
		if err := os.RemoveAll(dst); err != nil {
			return err
		}
		exists = false
	}
	switch mode := info.Mode(); {
	case mode&fs.ModeCharDevice != 0 && st.Major == 0 && st.Minor == 0:
		return nil // a whiteout
	case mode.IsDir():
		if !exists {
			if err := os.Mkdir(dst, 0o755); err != nil {
				return err
			}
		}
		entries, err := fs.ReadDir(fsys, name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := put(fsys, path.Join(name, e.Name()), filepath.Join(dst, e.Name()), links); err != nil {
				return err
			}
		}
	case links[st.Ino] != "":
		return os.Link(links[st.Ino], dst)
	case mode.IsRegular():
		links[st.Ino] = dst
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(dst, b, 0o600); err != nil {
			return err
		}
	case mode&fs.ModeSymlink != 0:
		target, err := fsys.ReadLink(name)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, dst); err != nil {
			return err
		}
		return os.Lchown(dst, int(st.UID), int(st.GID))
	default:
		return fmt.Errorf("%s: the suite makes no files of mode %v", name, mode)
	}
	for attr, value := range xattrs {
		if err := unix.Lsetxattr(dst, attr, value, 0); err != nil && !errors.Is(err, syscall.ENOTSUP) {
			return err
		}
	}
	if err := os.Lchown(dst, int(st.UID), int(st.GID)); err != nil {
		return err
	}
	if err := os.Chtimes(dst, info.ModTime(), info.ModTime()); err != nil {
		return err
	}
	return syscall.Chmod(dst, st.Mode&0o7777)
}
