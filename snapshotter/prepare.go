package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/facade"
	"github.com/applevm/applevm/snapshotter/union"
)

// Prepare makes an active snapshot: for a layer to be applied to, if the key
// or the labels are those of an unpacker, else for a container.
//
// If the layer that is to be applied has an image already, the mount is
// read-only, which tells containerd's unpacker (2.4 and later) that it need
// not fetch and apply the layer; applying it none the less does no harm.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a read-only snapshot of parent.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	if exists, err := s.exists(ctx, key); err != nil {
		return nil, err
	} else if exists {
		return nil, fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
	}

	s.gc.RLock()
	defer s.gc.RUnlock()
	dir, err := os.MkdirTemp(filepath.Join(s.root, snapshotsDir), newPrefix)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	if err := makeFacadeDir(dir); err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, err)
	}

	extraction := kind == snapshots.KindActive && isExtraction(key, info.Labels)
	var c chain
	if !extraction {
		if c, err = s.chainOf(ctx, parent); err != nil {
			return nil, fmt.Errorf("prepare snapshot %q: %w", key, err)
		}
		if err := s.furnish(ctx, dir, kind, &c, info.Labels); err != nil {
			return nil, fmt.Errorf("prepare snapshot %q: %w", key, err)
		}
	}

	var snap storage.Snapshot
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		if snap, err = storage.CreateSnapshot(ctx, kind, key, parent, opts...); err != nil {
			return err
		}
		final := s.snapshotDir(snap.ID)
		if extraction {
			if err := s.stage(dir, snap.ID, info.Labels[snapshots.LabelSnapshotDiffID]); err != nil {
				return err
			}
		} else {
			if !slices.Equal(snap.ParentIDs, c.ids) {
				return fmt.Errorf("parent %q was replaced meanwhile, try again: %w", parent, errdefs.ErrUnavailable)
			}
			m := manifest.Manifest{Layers: c.layers}
			if kind == snapshots.KindActive {
				m.Writable = &manifest.Writable{Path: filepath.Join(final, writableFile), FSType: imageType}
			}
			if err := manifest.Write(dir, m); err != nil {
				return err
			}
		}
		if err := os.Rename(dir, final); err != nil {
			return err
		}
		dir = final
		return nil
	})
	if err != nil {
		if extraction && snap.ID != "" {
			if dead, rerr := s.layers.retire(snap.ID, dir); rerr == nil && dead != "" {
				dir = dead
			}
		}
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, err)
	}
	return s.mounts(key, snap)
}

// exists spares the work for a key that is taken; the transaction that makes
// the snapshot has the last word.
func (s *Snapshotter) exists(ctx context.Context, key string) (exists bool, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, _, _, err := storage.GetInfo(ctx, key)
		exists = err == nil
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	})
	return exists, err
}

// stage gives the extraction snapshot in dir its layer, if label names one
// that has an image. The label comes from an image's configuration, so that
// it proves nothing; it only chooses among images that were verified when
// they were made.
func (s *Snapshotter) stage(dir, id, label string) error {
	diffID, err := digest.Parse(label)
	if err != nil {
		return nil // no label, or none that we could have an image for
	}
	_, err = s.layers.adopt(diffID, id, dir)
	return err
}

// furnish fills the directory of a container's snapshot or a view with all but
// the manifest. It takes from the chain the layers that are not seen.
func (s *Snapshotter) furnish(ctx context.Context, dir string, kind snapshots.Kind, c *chain, labels map[string]string) (err error) {
	seen, err := writeFacade(ctx, filepath.Join(dir, manifest.FacadeDir), c.layers)
	if err != nil {
		return err
	}
	c.owners = c.owners[len(c.layers)-len(seen):]
	c.layers = seen
	if err := s.limitLayers(ctx, c); err != nil {
		return err
	}
	if kind != snapshots.KindActive {
		return nil
	}
	size, err := writableSize(s.size, labels)
	if err != nil {
		return err
	}
	return createWritable(filepath.Join(dir, writableFile), size)
}

// chain is what a snapshot stands on.
type chain struct {
	// ids are the ancestors' identifiers, the parent first.
	ids []string
	// layers are their images, the lowest first. An ancestor that was
	// committed without changes has none.
	layers []manifest.Layer
	// owners are the ancestors that the layers were applied to.
	owners []string
}

// chainOf returns the chain whose top is the committed snapshot parent; that
// of no parent is empty.
func (s *Snapshotter) chainOf(ctx context.Context, parent string) (chain, error) {
	var c chain
	if parent == "" {
		return c, nil
	}
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		for name := parent; name != ""; {
			id, info, _, err := storage.GetInfo(ctx, name)
			if err != nil {
				return fmt.Errorf("parent %q: %w", name, err)
			}
			c.ids = append(c.ids, id)
			name = info.Parent
		}
		return nil
	})
	if err != nil {
		return chain{}, err
	}
	for _, id := range slices.Backward(c.ids) {
		diffID, err := readDiffID(s.snapshotDir(id))
		if err != nil {
			return chain{}, err
		}
		if diffID != "" {
			c.layers = append(c.layers, s.layers.layer(diffID))
			c.owners = append(c.owners, id)
		}
	}
	return c, nil
}

func makeFacadeDir(dir string) error {
	path := filepath.Join(dir, manifest.FacadeDir)
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755) // whatever the umask is: it shows as the container's /
}

// writeFacade writes what clients read of the file system that layers, lowest
// first, make up. It returns the layers that are seen: one that hides all that
// is below it makes those needless, and overlayfs itself does not look for that
// mark in a layer's root.
func writeFacade(ctx context.Context, dir string, layers []manifest.Layer) (seen []manifest.Layer, err error) {
	var merged union.Merged
	for i, l := range slices.Backward(layers) {
		image, oerr := openImage(l.Path)
		if oerr != nil {
			return nil, fmt.Errorf("layer %s: %w", l.DiffID, oerr)
		}
		defer func() { err = errors.Join(err, image.Close()) }()
		opaque, uerr := merged.Under(image.FS, manifest.LayerRoot)
		if uerr != nil {
			return nil, fmt.Errorf("layer %s: %w", l.DiffID, uerr)
		}
		if opaque {
			layers = layers[i:]
			break
		}
	}
	return layers, facade.Write(ctx, dir, &merged)
}
