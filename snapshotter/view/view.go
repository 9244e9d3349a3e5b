// Package view shows snapshots as their containers see them: a read-only file
// system, one directory for each snapshot, that a client of containerd as root may
// bind-mount (nerdctl export, diff, and cp of a stopped container do). What it shows it
// reads from the images in user space. It needs FUSE and the right to mount, so it is
// a process of its own, which the snapshotter can do without: snapshots then have only
// their facade.
package view

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/applevm/applevm/manifest"
)

// Dir is where the snapshotter with this root directory has its view.
func Dir(root string) string { return filepath.Join(root, "view") }

// snapshot is what a snapshot's file system is made of.
type snapshot struct {
	// writable is the image that takes a container's changes, empty for a snapshot that
	// has none. A machine that runs on it has locked it.
	writable string
	// layers are the images below, the highest first.
	layers []string
	// facade is the host's directory with the files that clients look up.
	facade string
}

// find returns the snapshot with an identifier; fs.ErrNotExist, wrapped, if there is none.
func find(root, id string) (snapshot, error) {
	if id == "" || id != filepath.Base(id) {
		return snapshot{}, fs.ErrNotExist
	}
	dir := filepath.Join(root, "snapshots", id)
	m, err := manifest.Read(dir)
	if errors.Is(err, manifest.ErrNoManifest) {
		return snapshot{}, fs.ErrNotExist
	}
	if err != nil {
		return snapshot{}, err
	}
	out := snapshot{facade: filepath.Join(dir, manifest.FacadeDir)}
	for i := range m.Layers {
		out.layers = append(out.layers, m.Layers[len(m.Layers)-1-i].Path)
	}
	if m.Writable != nil {
		out.writable = m.Writable.Path
	}
	return out, nil
}

// makeDir makes the directory where the view is mounted.
func makeDir(root string) (string, error) {
	dir := Dir(root)
	return dir, os.MkdirAll(dir, 0o700)
}
