package images

import (
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// WithLayer makes a variant of the image in archive, called ref, with the
// uncompressed layer on top. The new archive is in dir.
func WithLayer(archive, ref, layer, dir string) (string, error) {
	img, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		return "", err
	}
	l, err := tarball.LayerFromFile(layer)
	if err != nil {
		return "", err
	}
	if img, err = mutate.AppendLayers(img, l); err != nil {
		return "", err
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "layered.tar")
	return out, tarball.WriteToFile(out, tag, img)
}
