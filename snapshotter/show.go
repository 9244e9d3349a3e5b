package snapshotter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/view"
)

// source is the source of the mount of a container's snapshot or a view: all its files,
// if package view shows them now, else its facade.
func (s *Snapshotter) source(id string) (string, error) {
	dir := s.snapshotDir(id)
	facade := filepath.Join(dir, manifest.FacadeDir)
	// What a layer is applied to has no manifest, and nothing to show.
	if _, err := os.Lstat(filepath.Join(dir, manifest.FileName)); errors.Is(err, fs.ErrNotExist) || !view.IsMounted(s.root) {
		return facade, nil
	}
	link := filepath.Join(dir, manifest.ViewLink)
	if err := os.Symlink(filepath.Join(view.Dir(s.root), id), link); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("show snapshot %s: %w", id, err)
	}
	return link, nil
}
