package differ

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/ext4"
	"github.com/applevm/applevm/snapshotter/internal/ctxio"
)

const (
	// readSize is how much of a blob is read at a time, in bytes. Each read of
	// containerd's content store is one call.
	readSize = 1 << 20
	// pieceSize is how much of the tar is decompressed and then hashed at a time, in
	// bytes: what a processor's cache keeps in between, and a block of zstd.
	pieceSize = 128 << 10
	// maxWindow bounds the memory that a zstd stream can claim, in bytes. It
	// is the most that the zstd tool takes without being asked to (--long=27).
	maxWindow = 128 << 20
)

// Result is what Convert found.
type Result struct {
	// DiffID is the digest of the layer's uncompressed tar.
	DiffID digest.Digest
	// Size is the tar's length in bytes.
	Size int64
	// Read is the number of bytes taken from the compressed stream.
	Read int64
	// Stats are the writer's counts.
	Stats ext4.Stats
}

// ConvertOptions say how a layer is read.
type ConvertOptions struct {
	// DiffIDKnown says that the caller compares the diffID with the one that the
	// layer must have, as containerd does with what its image's configuration names.
	// The checksum that a zstd frame may end with (xxHash, RFC 8878 section 3.1.1) is
	// then not computed: SHA-256 says the same of the same bytes.
	DiffIDKnown bool
}

// Convert writes the layer that blob streams, a tar of the given OCI or Docker
// media type, to the empty file f as an ext4 image, in one pass. Memory does
// not grow with the size of the files in the layer. The whole of blob is read,
// also what follows the end of the tar.
//
// It returns errdefs.ErrInvalidArgument, wrapped, for a media type that is no
// layer's, and describes what is wrong with a corrupt layer. The content of f
// is then undefined.
func Convert(ctx context.Context, mediaType string, blob io.Reader, f *os.File, opts ConvertOptions) (Result, error) {
	if !isLayer(ctx, mediaType) {
		return Result{}, fmt.Errorf("media type %q is not that of a plain, gzip or zstd layer: %w", mediaType, errdefs.ErrInvalidArgument)
	}
	in := &countingReader{r: blob}
	plain, err := decompress(bufio.NewReaderSize(in, readSize), opts)
	if err != nil {
		return Result{}, err
	}
	defer plain.Close()

	hash := sha256.New()
	// There is no buffer in between: the decompressor writes to the image's.
	tar := &countingReader{r: io.TeeReader(pieces{ctxio.Reader(ctx, plain)}, hash)}

	w := ext4.NewLayerWriter(f, ext4.LayerOptions{Root: manifest.LayerRoot})
	// ReadTar reads past the tar's end marker: the diffID covers what follows
	// it, and only the end of a compressed stream has its checksum.
	if err := w.ReadTar(ctx, tar); err != nil {
		return Result{}, err
	}
	stats, err := w.Finish([sha256.Size]byte(hash.Sum(nil)))
	if err != nil {
		return Result{}, err
	}
	return Result{
		DiffID: digest.NewDigest(digest.SHA256, hash),
		Size:   tar.n,
		Read:   in.n,
		Stats:  stats,
	}, nil
}

// isLayer reports whether mediaType is a layer's that is compressed at most;
// encrypted ones, for instance, have another suffix.
func isLayer(ctx context.Context, mediaType string) bool {
	_, err := images.DiffCompression(ctx, mediaType)
	_, suffix, _ := strings.Cut(mediaType, "+")
	return err == nil && (suffix == "" || suffix == "gzip" || suffix == "zstd")
}

// The first bytes of compressed streams: RFC 1952 section 2.3.1 with the one
// compression method there is, and RFC 8878 section 3.1.
var (
	gzipMagic = []byte{0x1f, 0x8b, 8}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress returns the plain content of blob. The compression is found by
// the first bytes and not by the media type, which is often wrong: builders
// label uncompressed layers as gzip.
func decompress(blob *bufio.Reader, opts ConvertOptions) (io.ReadCloser, error) {
	head, err := blob.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		return gzip.NewReader(blob)
	case bytes.Equal(head, zstdMagic) || isSkippable(head):
		// One goroutine: layers in parallel make better use of the
		// processors than pieces of one layer.
		d, err := zstd.NewReader(blob, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow),
			zstd.IgnoreChecksum(opts.DiffIDKnown))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(blob), nil
}

// isSkippable reports whether head begins a zstd skippable frame, magic
// numbers 0x184D2A50 to 0x184D2A5F (RFC 8878 section 3.1.2).
func isSkippable(head []byte) bool {
	return len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18})
}

// pieces reads at most pieceSize at a time.
type pieces struct{ r io.Reader }

func (p pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), pieceSize)]) }

// countingReader counts what is read through it.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
