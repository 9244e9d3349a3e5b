package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/applevm/applevm/snapshotter/differ"
)

// unpackArg makes the bench a process that unpacks one layer one way:
//
//	bench unpack WAY [ARG...] BLOB OUT
const unpackArg = "unpack"

// unpacked is what such a process prints.
type unpacked struct {
	DiffID  string  `json:"diff_id"`
	PeakRSS float64 `json:"peak_rss"` // MiB
}

// unpackMain is that process.
func unpackMain(args []string) error {
	if len(args) < 3 {
		return errors.New("usage: bench unpack WAY [ARG...] BLOB OUT")
	}
	blob, out := args[len(args)-2], args[len(args)-1]
	diffID, err := unpackBy(context.Background(), args[0], args[1:len(args)-2], blob, out)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", blob, err)
	}
	rss, err := peakRSS(os.Getpid())
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(unpacked{DiffID: diffID.String(), PeakRSS: rss})
}

func unpackBy(ctx context.Context, way string, args []string, blob, out string) (digest.Digest, error) {
	switch way {
	case wayLimit:
		return copyPlain(blob, out)
	case wayOurs:
		return convert(ctx, blob, out)
	case wayOverlayfs:
		return applyToDir(ctx, blob, out)
	case wayErofs:
		return applyErofs(ctx, args, blob, out)
	}
	return "", fmt.Errorf("unknown way %q", way)
}

// copyPlain is the least that unpacking can be: the layer is decompressed, hashed
// and written to a file.
func copyPlain(blob, out string) (digest.Digest, error) {
	in, err := os.Open(blob)
	if err != nil {
		return "", err
	}
	defer in.Close()
	f, err := os.Create(out)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var plain io.Reader
	if mediaType(blob) == ocispec.MediaTypeImageLayerZstd {
		d, err := zstd.NewReader(bufio.NewReaderSize(in, 1<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return "", err
		}
		defer d.Close()
		plain = d
	} else if plain, err = gzip.NewReader(bufio.NewReaderSize(in, 1<<20)); err != nil {
		return "", err
	}
	hash := sha256.New()
	if _, err := io.CopyBuffer(io.MultiWriter(hash, f), struct{ io.Reader }{plain}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, hash), f.Close()
}

// convert is our differ's way.
func convert(ctx context.Context, blob, out string) (digest.Digest, error) {
	ra, err := local.OpenReader(blob)
	if err != nil {
		return "", err
	}
	defer ra.Close()
	f, err := os.Create(out)
	if err != nil {
		return "", err
	}
	defer f.Close()
	res, err := differ.Convert(ctx, mediaType(blob), content.NewReader(ra), f, differ.ConvertOptions{DiffIDKnown: true})
	if err != nil {
		return "", err
	}
	return res.DiffID, f.Close()
}

// applyToDir unpacks as containerd does for its overlayfs snapshotter, by its own
// code: to the upper directory of a snapshot with a parent, without mounting.
func applyToDir(ctx context.Context, blob, out string) (digest.Digest, error) {
	upper, lower := filepath.Join(out, "upper"), filepath.Join(out, "lower")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(lower, 0o755)); err != nil {
		return "", err
	}
	st, err := os.Stat(blob)
	if err != nil {
		return "", err
	}
	desc := ocispec.Descriptor{MediaType: mediaType(blob), Size: st.Size()}
	mounts := []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=" + upper, "lowerdir=" + lower}}}
	got, err := apply.NewFileSystemApplier(blobFile(blob)).Apply(ctx, desc, mounts)
	return got.Digest, err
}

// applyErofs does what containerd's erofs differ does (v2.4.2,
// plugins/diff/erofs/differ.go and internal/erofsutils/mount.go): the layer is
// decompressed and hashed on its way to mkfs.erofs. The differ itself needs modules
// that applevm does not.
func applyErofs(ctx context.Context, mkfs []string, blob, out string) (digest.Digest, error) {
	if len(mkfs) == 0 {
		return "", errors.New("no mkfs.erofs given")
	}
	ra, err := local.OpenReader(blob)
	if err != nil {
		return "", err
	}
	defer ra.Close()
	plain, err := compression.DecompressStream(content.NewReader(ra))
	if err != nil {
		return "", err
	}
	defer plain.Close()
	hash := sha256.New()
	in := io.TeeReader(plain, hash)
	cmd := exec.CommandContext(ctx, mkfs[0], append(mkfs[1:len(mkfs):len(mkfs)],
		"--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096", out)...)
	cmd.Stdin = in
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w: %s", cmd.Args, err, bytes.TrimSpace(text))
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, hash), nil
}

// blobFile is a content store of one blob.
type blobFile string

func (b blobFile) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return local.OpenReader(string(b))
}

func mediaType(blob string) string {
	if filepath.Ext(blob) == ".zst" {
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayerGzip
}
