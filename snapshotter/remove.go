package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Remove removes a snapshot and, if no other snapshot names it, its layer's
// image. Files that cannot be removed are left for Cleanup.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		id, _, err = storage.Remove(ctx, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	}
	if err := s.removeDir(id); err != nil {
		log.G(ctx).WithError(err).WithField("key", key).Warn("files of a removed snapshot are left for cleanup")
	}
	return nil
}

// Cleanup removes the files that belong to no snapshot.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	s.gc.Lock()
	err := s.removeGarbageDirs(ctx)
	s.gc.Unlock()
	if err := errors.Join(err, s.layers.cleanup()); err != nil {
		return fmt.Errorf("clean up %s: %w", s.root, err)
	}
	return nil
}

// recover makes the root directory agree with the database.
func (s *Snapshotter) recover(ctx context.Context) error {
	ids, err := s.ids(ctx)
	if err != nil {
		return err
	}
	for id, key := range ids {
		if err := s.checkSeal(ctx, id, key); err != nil {
			return err
		}
	}
	// Then who uses which layer: what is removed then takes no layer
	// with it that another snapshot has too.
	for id := range ids {
		if err := s.layers.noteAll(id, s.snapshotDir(id)); err != nil {
			return err
		}
	}
	if err := s.removeGarbageDirs(ctx); err != nil {
		return err
	}
	return s.layers.cleanup()
}

// removeGarbageDirs removes the directories of snapshots that the database
// does not have.
func (s *Snapshotter) removeGarbageDirs(ctx context.Context) error {
	ids, err := s.ids(ctx)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(s.root, snapshotsDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		name := e.Name()
		if _, ok := ids[name]; ok {
			continue
		}
		if strings.HasPrefix(name, newPrefix) || strings.HasPrefix(name, deadPrefix) {
			errs = append(errs, os.RemoveAll(s.snapshotDir(name)))
		} else {
			errs = append(errs, s.removeDir(name))
		}
	}
	return errors.Join(errs...)
}

// removeDir removes the directory of a snapshot that the database does not have.
func (s *Snapshotter) removeDir(id string) error {
	dead, err := s.layers.retire(id, s.snapshotDir(id))
	if err != nil || dead == "" {
		return err
	}
	return os.RemoveAll(dead)
}

// ids returns the identifiers of all snapshots, with their names.
func (s *Snapshotter) ids(ctx context.Context) (ids map[string]string, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		ids, err = storage.IDMap(ctx)
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil // no snapshot was ever made
		}
		return err
	})
	return ids, err
}
