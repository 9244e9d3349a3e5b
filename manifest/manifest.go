// Package manifest is the contract between the snapshotter, which makes disk
// images, and the shim, which attaches them to a machine: a small JSON file
// beside the directory that a snapshot's mount points at.
//
//	<root>/snapshots/<n>/
//	    fs/            the facade: the mount's source, what clients may read
//	    view           the mount's source instead, where clients can mount it: a link to all files
//	    applevm.json   the manifest
//	    rw.img         the writable image, if the snapshot is active
//
// Both sides import this package and nothing of each other.
package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Version is the schema's version. A reader refuses any other.
const Version = 1

// FileName is the manifest's name in a snapshot's directory.
const FileName = "applevm.json"

// FacadeDir is the name of the facade directory in a snapshot's directory.
const FacadeDir = "fs"

// ViewLink is the name of the link to all of a snapshot's files in its directory.
const ViewLink = "view"

// LayerRoot is the directory within a layer's image that holds the layer's
// tree. The image's own root also has lost+found, which no container must see.
const LayerRoot = "root"

// maxSize bounds a manifest file; 127 layers of long paths stay far below.
const maxSize = 1 << 20

// ErrNoManifest is returned by Find when a mount's source has no manifest
// beside it, so that it is not a snapshot of applevm-snapshotter.
var ErrNoManifest = errors.New("no applevm manifest")

// Manifest lists the images of one snapshot.
type Manifest struct {
	Version int `json:"version"`
	// Layers are the read-only images, lowest first.
	Layers []Layer `json:"layers,omitempty"`
	// Writable is the image that takes the changes; nil for a view.
	Writable *Writable `json:"writable,omitempty"`
}

// Layer is one read-only image, the same file for all who use the layer.
type Layer struct {
	// DiffID is the digest of the layer's uncompressed tar ("sha256:…"), empty for an
	// image that has several layers merged.
	DiffID string `json:"diffID,omitempty"`
	// Path is the image file's absolute path.
	Path string `json:"path"`
	// FSType is the file system in the image, "ext4".
	FSType string `json:"fsType"`
}

// Writable is an image that belongs to one snapshot alone.
type Writable struct {
	// Path is the image file's absolute path.
	Path string `json:"path"`
	// FSType is the file system in the image, "ext4".
	FSType string `json:"fsType"`
}

// Write stores m in the snapshot directory dir, atomically.
func Write(dir string, m Manifest) error {
	m.Version = Version
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, FileName+".*")
	if err != nil {
		return fmt.Errorf("write manifest in %s: %w", dir, err)
	}
	defer os.Remove(f.Name()) // no effect after the rename
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, FileName))
	}
	if err != nil {
		return fmt.Errorf("write manifest in %s: %w", dir, err)
	}
	return nil
}

// Read loads and checks the manifest in the snapshot directory dir. It returns
// ErrNoManifest, wrapped, if there is none.
func Read(dir string) (Manifest, error) {
	path := filepath.Join(dir, FileName)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, fmt.Errorf("%s: %w", dir, ErrNoManifest)
	}
	if err != nil {
		return Manifest{}, err
	}
	if st.Size() > maxSize {
		return Manifest{}, fmt.Errorf("manifest %s is %d bytes long, more than %d", path, st.Size(), maxSize)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Manifest{}, err
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return Manifest{}, fmt.Errorf("manifest %s: %w", path, err)
	}
	if err := m.validate(); err != nil {
		return Manifest{}, fmt.Errorf("manifest %s: %w", path, err)
	}
	return m, nil
}

// Find loads the manifest that belongs to a mount whose source is the facade
// directory source. It returns ErrNoManifest, wrapped, for any other source.
func Find(source string) (Manifest, error) {
	source = filepath.Clean(source)
	if base := filepath.Base(source); base != FacadeDir && base != ViewLink {
		return Manifest{}, fmt.Errorf("%s: %w", source, ErrNoManifest)
	}
	return Read(filepath.Dir(source))
}

func (m Manifest) validate() error {
	if m.Version != Version {
		return fmt.Errorf("version %d is not supported (want %d): update applevm-snapshotter and the shim together", m.Version, Version)
	}
	for i, l := range m.Layers {
		if !filepath.IsAbs(l.Path) || l.FSType == "" {
			return fmt.Errorf("layer %d: needs an absolute path and a file system type", i)
		}
	}
	if w := m.Writable; w != nil && (!filepath.IsAbs(w.Path) || w.FSType == "") {
		return errors.New("writable image: needs an absolute path and a file system type")
	}
	return nil
}
