package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/manifest"
)

// Commit makes the active snapshot key the committed snapshot name. If key was
// prepared without a parent, a parent can be given now (snapshots.WithParent),
// which is how layers are unpacked in parallel.
//
// The changes of a container that has run on the snapshot become its layer. The
// container must have been stopped: errdefs.ErrUnavailable is returned, and the
// snapshot stays active, if it writes meanwhile.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	seal, err := s.seal(ctx, key)
	if err != nil {
		return fmt.Errorf("commit snapshot %q as %q: %w", key, name, err)
	}
	s.gc.RLock()
	defer s.gc.RUnlock()
	var dir string
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		id, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		if info.Kind != snapshots.KindActive {
			return fmt.Errorf("it is not active: %w", errdefs.ErrFailedPrecondition)
		}
		dir = s.snapshotDir(id)
		if seal != nil {
			if err := seal.record(id, dir); err != nil {
				return err
			}
		}
		usage, err := s.committable(dir)
		if err != nil {
			return err
		}
		_, err = storage.CommitActive(ctx, key, name, usage, opts...)
		return err
	})
	if err != nil {
		if seal != nil {
			err = errors.Join(err, s.breakSeal(ctx, seal, key))
		}
		return fmt.Errorf("commit snapshot %q as %q: %w", key, name, err)
	}
	for _, file := range []string{writableFile, manifest.FileName, sealFile} {
		if err := os.Remove(filepath.Join(dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.G(ctx).WithError(err).Warn("file of a committed snapshot is left until the snapshot is removed")
		}
	}
	return nil
}

// committable returns what the committed snapshot will take on disk, or why
// the active one in dir cannot be committed.
func (s *Snapshotter) committable(dir string) (snapshots.Usage, error) {
	diffID, err := readDiffID(dir)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if diffID != "" {
		// The directory's own entry must not be lost after the database has
		// recorded it as committed.
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return snapshots.Usage{}, err
		}
		return s.layerUsage(diffID)
	}
	used, err := writableUsed(filepath.Join(dir, writableFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return snapshots.Usage{}, fmt.Errorf("no layer has been applied to it: %w", errdefs.ErrFailedPrecondition)
	case err != nil:
		return snapshots.Usage{}, err
	case used:
		return snapshots.Usage{}, fmt.Errorf("a container has begun to run on it meanwhile: stop the container: %w", errdefs.ErrUnavailable)
	}
	return snapshots.Usage{}, nil
}

func (s *Snapshotter) layerUsage(diffID digest.Digest) (snapshots.Usage, error) {
	return fileUsage(s.layers.path(diffID))
}

// activeUsage returns what the active snapshot in dir takes on disk.
func (s *Snapshotter) activeUsage(dir string) (snapshots.Usage, error) {
	diffID, err := readDiffID(dir)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if diffID != "" {
		return s.layerUsage(diffID)
	}
	usage, err := fileUsage(filepath.Join(dir, writableFile))
	if errors.Is(err, fs.ErrNotExist) {
		return snapshots.Usage{}, nil
	}
	return usage, err
}
