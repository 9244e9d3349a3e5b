// Package snapshotter is a containerd snapshotter for containers that run in
// virtual machines. A snapshot is a chain of read-only ext4 images, one for
// each layer, and, for a container, one sparse writable image. Nothing is
// ever mounted on the host and no privilege is needed: the guest stacks the
// images.
//
// The root directory holds
//
//	lock                       flock'ed by the one process that uses the root
//	metadata.db                names, parents, labels (core/snapshots/storage)
//	layers/sha256-<hex>.ext4   one image a layer, shared by all who use it
//	layers/merged-<hex>.ext4   the lowest layers of a long chain in one image
//	snapshots/<id>/fs/         the facade, which is the source of the snapshot's mount
//	snapshots/<id>/view        a link into view/, and the source instead if there is one
//	snapshots/<id>/applevm.json, rw.img   of a container's snapshot or a view
//	snapshots/<id>/diffid      names the layer that was applied to the snapshot
//	snapshots/<id>/merged      names the image of that layer and all below it
//	view/<id>/                 all of a snapshot's files, where `applevm-snapshotter view` runs
//	snapshots/<id>/seal        while Commit makes a container's changes that layer
//
// A layer's image is complete before the snapshot names it, and Commit is a
// single database transaction. So a process that is killed at any moment
// leaves either a whole snapshot or none; what else it leaves is garbage that
// New and Cleanup remove.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/manifest"
)

const (
	layersDir    = "layers"
	snapshotsDir = "snapshots"

	// newPrefix names a snapshot's directory while it is being made,
	// deadPrefix one that is being removed.
	newPrefix  = "new-"
	deadPrefix = "rm-"
)

// Options are a Snapshotter's settings.
type Options struct {
	// WritableSize is the size in bytes that a container's writable image
	// appears to have. It is sparse.
	WritableSize int64
	// MaxLayers is how many layers' images a container's machine gets at the most,
	// 0 for DefaultMaxLayers. Of a longer chain the lowest are merged into one.
	MaxLayers int
}

// DefaultMaxLayers is the limit that Options have by default.
const DefaultMaxLayers = 16

// Snapshotter implements containerd's snapshots.Snapshotter and
// snapshots.Cleaner. One process at a time can use a root directory.
type Snapshotter struct {
	root   string
	size   int64
	max    int // layers of a container
	meta   *storage.MetaStore
	layers *layerStore
	lock   *os.File

	// gc is read-locked while a snapshot's directory exists that the database
	// does not know yet, and locked while such directories are removed.
	gc sync.RWMutex

	// merging has room for the one who merges layers.
	merging chan struct{}

	// noVolumeView makes a View of nerdctl's copy-up of image volumes have no
	// mounts; see isVolumeView.
	noVolumeView bool

	closed sync.Once
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the root directory, makes it if it does not exist, and removes
// what an earlier process left unfinished. It returns errdefs.ErrUnavailable,
// wrapped, if another process uses the root.
func New(ctx context.Context, root string, opts Options) (_ *Snapshotter, err error) {
	if root, err = filepath.Abs(root); err != nil {
		return nil, err
	}
	if opts.WritableSize <= 0 {
		return nil, fmt.Errorf("the writable image's size is %d bytes: %w", opts.WritableSize, errdefs.ErrInvalidArgument)
	}
	if opts.MaxLayers == 0 {
		opts.MaxLayers = DefaultMaxLayers
	}
	if opts.MaxLayers < 1 {
		return nil, fmt.Errorf("the most layers of a container are %d: %w", opts.MaxLayers, errdefs.ErrInvalidArgument)
	}
	for _, dir := range []string{root, filepath.Join(root, layersDir), filepath.Join(root, snapshotsDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open snapshotter: %w", err)
		}
	}
	lock, err := lockRoot(root)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	meta, err := storage.NewMetaStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	s := &Snapshotter{
		root:         root,
		size:         opts.WritableSize,
		max:          opts.MaxLayers,
		merging:      make(chan struct{}, 1),
		meta:         meta,
		layers:       newLayerStore(filepath.Join(root, layersDir)),
		lock:         lock,
		noVolumeView: runtime.GOOS == "darwin",
	}
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("open snapshotter %s: %w", root, errors.Join(err, meta.Close()))
	}
	return s, nil
}

// Close releases the database and the root directory. Further calls do nothing.
func (s *Snapshotter) Close() error {
	var err error
	s.closed.Do(func() {
		err = errors.Join(s.meta.Close(), s.lock.Close())
	})
	return err
}

// Root returns the root directory's absolute path.
func (s *Snapshotter) Root() string { return s.root }

// Stat returns what the database knows of the snapshot named key.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes the labels of a snapshot.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	return updated, err
}

// Walk calls fn for each snapshot that matches the filters.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	called := false
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			called = true
			return fn(ctx, info)
		}, filters...)
	})
	if !called && errors.Is(err, errdefs.ErrNotFound) {
		return nil // the database is empty before the first snapshot is made
	}
	return err
}

// Usage returns what a snapshot takes on disk: allocated bytes, not apparent
// size. A layer's image counts for each snapshot that it was applied to,
// although it is stored once.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var (
		id    string
		info  snapshots.Info
		usage snapshots.Usage
	)
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil || info.Kind != snapshots.KindActive {
		return usage, err
	}
	return s.activeUsage(s.snapshotDir(id))
}

// Mounts returns the mount of an active snapshot or a view.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var snap storage.Snapshot
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		snap, err = storage.GetSnapshot(ctx, key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	return s.mounts(key, snap)
}

// mounts returns the one mount of a snapshot: of its facade, or of all its files where
// clients can mount them. It never returns
// none, except for isVolumeView: clients take a rootfs without mounts for one
// without users and silently run the container as root.
func (s *Snapshotter) mounts(key string, snap storage.Snapshot) ([]mount.Mount, error) {
	if s.noVolumeView && snap.Kind == snapshots.KindView && isVolumeView(key) {
		return nil, nil
	}
	access := "rw"
	if snap.Kind == snapshots.KindView {
		access = "ro"
	} else if staged, err := isStaged(s.snapshotDir(snap.ID)); err != nil {
		return nil, err
	} else if staged {
		access = "ro"
	}
	source, err := s.source(snap.ID)
	if err != nil {
		return nil, err
	}
	return []mount.Mount{{
		Type:    "bind",
		Source:  source,
		Options: []string{"rbind", access},
	}}, nil
}

func (s *Snapshotter) snapshotDir(id string) string {
	return filepath.Join(s.root, snapshotsDir, id)
}

// idOf returns the identifier of the snapshot whose mount has the given
// source, and false if the source is none of ours.
func (s *Snapshotter) idOf(source string) (string, bool) {
	rel, err := filepath.Rel(filepath.Join(s.root, snapshotsDir), source)
	if err != nil {
		return "", false
	}
	id, rest, ok := strings.Cut(filepath.ToSlash(rel), "/")
	return id, ok && (rest == manifest.FacadeDir || rest == manifest.ViewLink) && id != ".."
}

// snapshotOf finds the snapshot that has these mounts. It returns
// errdefs.ErrNotFound, wrapped, for mounts that Owns does not report.
func (s *Snapshotter) snapshotOf(ctx context.Context, mounts []mount.Mount) (id string, info snapshots.Info, err error) {
	if !s.Owns(mounts) {
		return "", info, fmt.Errorf("mounts of no snapshot: %w", errdefs.ErrNotFound)
	}
	id, _ = s.idOf(mounts[len(mounts)-1].Source)
	ids, err := s.ids(ctx)
	if err != nil {
		return "", info, err
	}
	key, ok := ids[id]
	if !ok {
		return "", info, fmt.Errorf("snapshot %s: %w", id, errdefs.ErrNotFound)
	}
	info, err = s.Stat(ctx, key)
	return id, info, err
}

// Owns reports whether mounts are those of a snapshot of this snapshotter.
// Clients look only at the last mount, so that one decides.
func (s *Snapshotter) Owns(mounts []mount.Mount) bool {
	if len(mounts) == 0 {
		return false
	}
	_, ok := s.idOf(mounts[len(mounts)-1].Source)
	return ok
}
