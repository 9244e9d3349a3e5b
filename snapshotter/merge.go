package snapshotter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/union"
)

// A machine has room for so many disks, and each makes its start longer. Where an
// image has more layers than the limit, the lowest are merged into one image: once,
// for all containers of the image and of all others that begin with the same
// layers. It is kept as long as the snapshot of the highest layer in it.

// mergedPrefix begins the names of images that have several layers.
const mergedPrefix = "merged-"

// limitLayers makes a chain no longer than the limit.
func (s *Snapshotter) limitLayers(ctx context.Context, c *chain) error {
	n := len(c.layers) - s.max + 1 // so many become one
	if n < 2 {
		return nil
	}
	merged, err := s.merge(ctx, c.layers[:n], c.owners[n-1])
	if err != nil {
		return fmt.Errorf("merge the %d lowest of %d layers: %w", n, len(c.layers), err)
	}
	c.layers = append([]manifest.Layer{merged}, c.layers[n:]...)
	return nil
}

// merge returns one image of all the layers, lowest first, and makes it if there
// is none. owner is the snapshot of the highest layer.
func (s *Snapshotter) merge(ctx context.Context, layers []manifest.Layer, owner string) (manifest.Layer, error) {
	name := mergedName(layers)
	out := manifest.Layer{Path: filepath.Join(s.layers.dir, name), FSType: imageType}
	select {
	case s.merging <- struct{}{}:
		defer func() { <-s.merging }()
	case <-ctx.Done():
		return out, ctx.Err()
	}
	if s.layers.has(name) {
		return out, nil
	}
	f, err := s.layers.create()
	if err != nil {
		return out, err
	}
	defer s.layers.discard(f)
	if err := writeMerged(ctx, f, layers); err != nil {
		return out, err
	}
	return out, s.layers.publishAs(f, name, owner, func() error { return writeLine(s.snapshotDir(owner), mergedFile, name) })
}

// writeMerged writes what layers show, stacked, as one image.
func writeMerged(ctx context.Context, f *os.File, layers []manifest.Layer) (err error) {
	var places []union.Place
	for _, l := range slices.Backward(layers) {
		i, oerr := openImage(l.Path)
		if oerr != nil {
			return fmt.Errorf("layer %s: %w", l.DiffID, oerr)
		}
		defer func() { err = errors.Join(err, i.Close()) }()
		places = append(places, union.Place{Layer: i.FS, Path: manifest.LayerRoot})
	}
	_, err = writeLayer(ctx, f, places, nil)
	return err
}

// mergedName is the file name of the image of these layers.
func mergedName(layers []manifest.Layer) string {
	h := sha256.New()
	for _, l := range layers {
		fmt.Fprintln(h, l.DiffID)
	}
	return mergedPrefix + hex.EncodeToString(h.Sum(nil)) + imageSuffix
}

// readMerged returns the name of the merged image that belongs to the snapshot in
// dir, empty if there is none.
func readMerged(dir string) (string, error) {
	path := filepath.Join(dir, mergedFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	name := strings.TrimSpace(string(b))
	hash, ok := strings.CutPrefix(name, mergedPrefix)
	hash, ok2 := strings.CutSuffix(hash, imageSuffix)
	if _, err := hex.DecodeString(hash); !ok || !ok2 || err != nil || len(hash) != 2*sha256.Size {
		return "", fmt.Errorf("%s names no image: %q", path, name)
	}
	return name, nil
}
