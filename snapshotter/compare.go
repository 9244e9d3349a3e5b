package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/union"
)

// Changes calls read with the trees by which the snapshot whose mounts are upper
// differs from the one whose mounts are lower, and with those of the latter, the
// highest first. lower may have no mounts: then everything is a change.
//
// A container may run on the upper snapshot. What its kernel holds back in memory
// is not seen, so that it should be paused, which writes everything out.
//
// It returns errdefs.ErrNotFound for mounts that Owns does not report,
// errdefs.ErrFailedPrecondition if upper does not stand on the layers of lower, and
// errdefs.ErrUnavailable if a container wrote to upper while read ran: what read
// saw then is worth nothing.
func (s *Snapshotter) Changes(ctx context.Context, lower, upper []mount.Mount, read func(upper, lower []union.Place) error) (err error) {
	var lo, up contents
	if len(lower) > 0 {
		if lo, err = s.contentsAt(ctx, lower); err != nil {
			return err
		}
	}
	if up, err = s.contentsAt(ctx, upper); err != nil {
		return err
	}
	switch {
	case lo.writable != "":
		return fmt.Errorf("a container has written to the lower snapshot: %w", errdefs.ErrFailedPrecondition)
	case len(lo.layers) > len(up.layers) || !slices.Equal(lo.layers, up.layers[:len(lo.layers)]):
		return fmt.Errorf("the upper snapshot does not stand on the layers of the lower one: %w", errdefs.ErrFailedPrecondition)
	}
	return s.changes(lo, up, read)
}

// changes is Changes for a lower snapshot that has the lowest layers of the upper one.
func (s *Snapshotter) changes(lo, up contents, read func(upper, lower []union.Place) error) (err error) {
	var places []union.Place // the highest first
	var images []*image
	defer func() {
		for _, i := range images {
			err = errors.Join(err, i.Close())
		}
	}()
	open := func(path, root string) (union.Place, error) {
		i, err := openImage(path)
		if err != nil {
			return union.Place{}, fmt.Errorf("image %s: %w", path, err)
		}
		images = append(images, i)
		return union.Place{Layer: i.FS, Path: root}, nil
	}
	before, err := writtenAt(up.writable)
	if err != nil {
		return err
	}
	changed := func(err error) error {
		if now, serr := writtenAt(up.writable); serr != nil || now == before {
			return errors.Join(err, serr)
		}
		return fmt.Errorf("its container wrote to the snapshot while it was read: pause the container: %w", errdefs.ErrUnavailable)
	}
	if up.writable != "" {
		p, err := open(up.writable, api.UpperDir)
		if err != nil {
			return changed(err)
		}
		// It is not there yet if no guest has mounted the image.
		switch _, err := p.Lstat(); {
		case err == nil:
			places = append(places, p)
		case !errors.Is(err, fs.ErrNotExist):
			return changed(fmt.Errorf("image %s: %w", up.writable, err))
		}
	}
	for _, l := range slices.Backward(up.layers) {
		p, err := open(l.Path, manifest.LayerRoot)
		if err != nil {
			return err
		}
		places = append(places, p)
	}
	n := len(places) - len(lo.layers)
	return changed(read(places[:n], places[n:]))
}

// contents is what a snapshot shows.
type contents struct {
	layers   []manifest.Layer // the lowest first
	writable string           // the image with a container's changes, empty if there are none
}

// contentsAt finds what the snapshot with these mounts shows.
func (s *Snapshotter) contentsAt(ctx context.Context, mounts []mount.Mount) (contents, error) {
	id, info, err := s.snapshotOf(ctx, mounts)
	if err != nil {
		return contents{}, err
	}
	return s.contentsOf(ctx, id, info)
}

// contentsOf finds what a snapshot shows.
func (s *Snapshotter) contentsOf(ctx context.Context, id string, info snapshots.Info) (contents, error) {
	c, err := s.chainOf(ctx, info.Parent)
	if err != nil {
		return contents{}, err
	}
	out := contents{layers: c.layers}
	own, err := readDiffID(s.snapshotDir(id))
	if err != nil {
		return contents{}, err
	}
	if own != "" {
		out.layers = append(out.layers, s.layers.layer(own))
	}
	if info.Kind != snapshots.KindActive {
		return out, nil
	}
	path := filepath.Join(s.snapshotDir(id), writableFile)
	used, err := writableUsed(path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if used {
		out.writable = path
	}
	return out, err
}

// version tells one state of a file from a later one.
type version struct{ modified, size int64 }

// writtenAt returns the state of a file; of no file, nothing.
func writtenAt(path string) (version, error) {
	if path == "" {
		return version{}, nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return version{}, err
	}
	return version{st.ModTime().UnixNano(), st.Size()}, nil
}
