package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/manifest"
)

// AddLayer gives the active snapshot whose mounts are given its layer. It
// calls write to write the layer's image to an empty file and to return the
// layer's diffID. If write or AddLayer fails, nothing is left of the image.
//
// It returns errdefs.ErrNotFound for mounts that Owns does not report, and
// errdefs.ErrFailedPrecondition for a snapshot that is not active, that has
// another layer, or that a container has written to.
func (s *Snapshotter) AddLayer(ctx context.Context, mounts []mount.Mount, write func(f *os.File) (digest.Digest, error)) error {
	id, info, err := s.snapshotOf(ctx, mounts)
	if err != nil {
		return err
	}
	dir := s.snapshotDir(id)
	if err := s.appliable(dir, info); err != nil {
		return err
	}
	f, err := s.layers.create()
	if err != nil {
		return err
	}
	defer s.layers.discard(f)
	diffID, err := write(f)
	if err != nil {
		return err
	}
	if err := diffID.Validate(); err != nil {
		return err
	}
	if have, err := readDiffID(dir); err != nil {
		return err
	} else if have != "" && have != diffID {
		return fmt.Errorf("the snapshot has layer %s already: %w", have, errdefs.ErrFailedPrecondition)
	}
	if err := s.layers.publish(f, diffID, id, dir); err != nil {
		return err
	}
	return s.showLayer(ctx, dir, diffID)
}

// appliable returns an error if no layer can be applied to the snapshot in dir.
func (s *Snapshotter) appliable(dir string, info snapshots.Info) error {
	if info.Kind != snapshots.KindActive {
		return fmt.Errorf("snapshot %q is not active: %w", info.Name, errdefs.ErrFailedPrecondition)
	}
	used, err := writableUsed(filepath.Join(dir, writableFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && used {
		err = fmt.Errorf("a container has written to snapshot %q: %w", info.Name, errdefs.ErrFailedPrecondition)
	}
	return err
}

// showLayer makes a snapshot that was prepared for a container, and had a
// layer applied to it, show that layer.
func (s *Snapshotter) showLayer(ctx context.Context, dir string, diffID digest.Digest) error {
	m, err := manifest.Read(dir)
	if errors.Is(err, manifest.ErrNoManifest) {
		return nil
	}
	if err != nil {
		return err
	}
	top := s.layers.layer(diffID)
	if n := len(m.Layers); n == 0 || m.Layers[n-1] != top {
		m.Layers = append(m.Layers, top)
	}
	if m.Layers, err = writeFacade(ctx, filepath.Join(dir, manifest.FacadeDir), m.Layers); err != nil {
		return err
	}
	return manifest.Write(dir, m)
}

// isStaged reports whether the snapshot in dir was prepared for a layer to be
// applied to and has it.
func isStaged(dir string) (bool, error) {
	diffID, err := readDiffID(dir)
	if err != nil || diffID == "" {
		return false, err
	}
	_, err = os.Lstat(filepath.Join(dir, writableFile))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}
