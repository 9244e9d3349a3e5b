package images

import (
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// WithLayers makes a variant of the image in archive, called ref, with the
// uncompressed layers on top, the lowest first. The new archive is in dir.
func WithLayers(archive, ref, dir string, layers ...string) (string, error) {
	img, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		return "", err
	}
	for _, path := range layers {
		l, err := tarball.LayerFromFile(path)
		if err != nil {
			return "", err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return "", err
		}
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "layered.tar")
	return out, tarball.WriteToFile(out, tag, img)
}
