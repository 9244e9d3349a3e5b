package images

import (
	"context"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// DebianLayer returns, from the cache or newly made, the tar of Debian's image:
// about 100 MB.
func DebianLayer(ctx context.Context) (string, error) {
	archive, err := Debian(ctx)
	if err != nil {
		return "", err
	}
	return cached(ctx, "debian-layer.tar", archive, func(_, out string) error {
		img, err := tarball.ImageFromPath(archive, nil)
		if err != nil {
			return err
		}
		layers, err := img.Layers()
		if err != nil {
			return err
		}
		r, err := layers[0].Uncompressed()
		if err != nil {
			return err
		}
		defer r.Close()
		return writeFile(out, r)
	})
}

// DebianLarge makes, or finds in the cache, the tar of a Debian root with
// compilers, Perl, Python and documentation: about 500 MB, in files of all sizes.
func DebianLarge(ctx context.Context) (string, error) {
	args := []string{"--variant=minbase", "--quiet", "--include=build-essential,python3,git,procps", "bookworm"}
	return cached(ctx, "debian-large.tar", strings.Join(args, "\x00"), func(_, out string) error {
		return mmdebstrap(ctx, append(args, out)...)
	})
}

// writeFile writes what r holds to a new file.
func writeFile(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
