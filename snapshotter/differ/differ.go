// Package differ is the diff service of applevm-snapshotter: it turns the
// layers of images into ext4 images without mounting anything.
package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/applevm/applevm/snapshotter/union"
)

// Layers is where the images of layers go; *snapshotter.Snapshotter is one.
type Layers interface {
	// Owns reports whether mounts are those of one of its snapshots.
	Owns(mounts []mount.Mount) bool
	// AddLayer gives the snapshot with these mounts its layer, whose image
	// write writes and whose diffID it returns.
	AddLayer(ctx context.Context, mounts []mount.Mount, write func(f *os.File) (digest.Digest, error)) error
	// Changes calls read with the trees by which the snapshot with the mounts
	// upper differs from that with the mounts lower, and with the latter's. It
	// returns errdefs.ErrUnavailable if they were written to meanwhile.
	Changes(ctx context.Context, lower, upper []mount.Mount, read func(upper, lower []union.Place) error) error
}

// Leaser makes leases, which keep content from containerd's garbage collection;
// leases.Manager is one.
type Leaser interface {
	Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error)
}

// Differ implements containerd's diff.Applier and diff.Comparer for the
// snapshots of one snapshotter.
type Differ struct {
	layers Layers
	blobs  content.Store
	leaser Leaser
}

var (
	_ diff.Applier  = (*Differ)(nil)
	_ diff.Comparer = (*Differ)(nil)
)

// New returns a Differ that reads layers from blobs, and writes them there under
// leases of leaser.
func New(layers Layers, blobs content.Store, leaser Leaser) *Differ {
	return &Differ{layers: layers, blobs: blobs, leaser: leaser}
}

// Apply writes the layer desc to the snapshot whose mounts are given and
// returns a descriptor of the uncompressed layer, whose digest is the diffID.
// An error names the layer; nothing is then left of it.
//
// It returns errdefs.ErrNotImplemented for mounts of other snapshotters,
// which makes containerd try its next differ, and never for our own: another
// differ would extract the layer into the facade.
func (d *Differ) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	if !d.layers.Owns(mounts) {
		return ocispec.Descriptor{}, fmt.Errorf("apply to a snapshot of another snapshotter: %w", errdefs.ErrNotImplemented)
	}
	var config diff.ApplyConfig
	for _, opt := range opts {
		if err := opt(ctx, desc, &config); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	start := time.Now()
	var res Result
	err := d.layers.AddLayer(ctx, mounts, func(f *os.File) (digest.Digest, error) {
		var err error
		res, err = d.convert(ctx, desc, f, config.Progress)
		return res.DiffID, err
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", desc.Digest, final(err))
	}
	log.G(ctx).WithFields(log.Fields{
		"digest":   desc.Digest,
		"diffID":   res.DiffID,
		"size":     res.Size,
		"duration": time.Since(start),
	}).Debug("layer applied")
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer,
		Digest:    res.DiffID,
		Size:      res.Size,
	}, nil
}

// convert writes the layer's image to f.
func (d *Differ) convert(ctx context.Context, desc ocispec.Descriptor, f *os.File, progress func(int64)) (Result, error) {
	ra, err := d.blobs.ReaderAt(ctx, desc)
	if err != nil {
		return Result{}, fmt.Errorf("open it in containerd's content store: %w", err)
	}
	defer ra.Close()
	if desc.Size > 0 && ra.Size() != desc.Size {
		return Result{}, fmt.Errorf("the content store has %d bytes of it, its descriptor says %d: %w", ra.Size(), desc.Size, errdefs.ErrFailedPrecondition)
	}
	blob := content.NewReader(ra)
	if progress != nil {
		blob = &progressReader{r: blob, report: progress}
	}
	res, err := Convert(ctx, desc.MediaType, blob, f, ConvertOptions{DiffIDKnown: true})
	if err != nil {
		return Result{}, err
	}
	if res.Read != ra.Size() {
		return Result{}, fmt.Errorf("only %d of its %d bytes are a layer: %w", res.Read, ra.Size(), errdefs.ErrFailedPrecondition)
	}
	if progress != nil {
		progress(res.Read)
	}
	return res, nil
}

// final makes an error one line of text with one class. The errors of a tree
// (errors.Join, several %w) would each become a line when gRPC has carried
// them, and errdefs.ErrNotImplemented would send containerd on to its next
// differ.
func final(err error) error {
	class := errdefs.Resolve(err)
	switch {
	case errors.Is(class, errdefs.ErrNotImplemented):
		class = errdefs.ErrInvalidArgument
	case errors.Is(class, errdefs.ErrUnknown) && errors.Is(err, io.ErrUnexpectedEOF):
		err, class = fmt.Errorf("the layer is truncated: %w", err), errdefs.ErrInvalidArgument
	case errors.Is(class, errdefs.ErrUnknown):
		return err
	}
	text := err.Error()
	for _, suffix := range []string{": " + class.Error(), " (" + class.Error() + ")"} {
		text = strings.TrimSuffix(text, suffix)
	}
	return fmt.Errorf("%s: %w", text, class)
}

// progressReader reports how far a blob has been read.
type progressReader struct {
	r      io.Reader
	n      int64
	report func(int64)
}

func (p *progressReader) Read(b []byte) (int, error) {
	p.report(p.n)
	n, err := p.r.Read(b)
	p.n += int64(n)
	return n, err
}
