package differ

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/applevm/applevm/snapshotter/changes"
	"github.com/applevm/applevm/snapshotter/union"
)

// compareAttempts is how often a snapshot is read whose container writes to it.
const compareAttempts = 3

// Compare writes what the snapshot with the mounts upper has changed over that
// with the mounts lower as a layer into the content store: a container's changes
// for a commit, or an image's layers above another's. Nothing is mounted.
//
// The layer is compressed as the media type asked for says: gzip, which is the
// default, zstd or not at all. The blob's label containerd.io/uncompressed has
// the diffID.
//
// For snapshots of other snapshotters it returns errdefs.ErrNotImplemented, which
// makes containerd try its next differ, and never for our own: another differ
// would compare the facades and store an empty layer without a word.
func (d *Differ) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	if !d.layers.Owns(upper) && !d.layers.Owns(lower) {
		return ocispec.Descriptor{}, fmt.Errorf("compare snapshots of another snapshotter: %w", errdefs.ErrNotImplemented)
	}
	var config diff.Config
	for _, opt := range opts {
		if err := opt(&config); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if config.MediaType == "" {
		config.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	ctx, err := d.lease(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	newReference := config.Reference == ""
	if newReference {
		config.Reference = "applevm-diff-" + rand.Text()
	}
	for attempt := 1; ; attempt++ {
		desc, err := d.compare(ctx, lower, upper, config)
		if err == nil {
			return desc, nil
		}
		if newReference {
			abort(ctx, d.blobs, config.Reference)
		}
		if !errdefs.IsUnavailable(err) || attempt == compareAttempts || ctx.Err() != nil {
			if errdefs.IsNotImplemented(err) { // of a feature in an image: see above
				err = errdefs.ErrFailedPrecondition.WithMessage(err.Error())
			}
			return ocispec.Descriptor{}, fmt.Errorf("make a layer of the changes: %w", err)
		}
	}
}

// leaseTime is how long a new layer is kept for a client that has not named it yet.
const leaseTime = time.Hour

// lease makes what is written under ctx outlive containerd's next garbage
// collection. The client's own lease does not reach us: containerd hands proxy
// plugins the namespace of a call, but not its lease (2.4.2).
func (d *Differ) lease(ctx context.Context) (context.Context, error) {
	if _, ok := leases.FromContext(ctx); ok {
		return ctx, nil
	}
	l, err := d.leaser.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime))
	if err != nil {
		return ctx, fmt.Errorf("get a lease of containerd for the new layer: %w", err)
	}
	return leases.WithLease(ctx, l.ID), nil
}

// abort forgets what was written for a layer that will not be.
func abort(ctx context.Context, blobs content.Store, ref string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := blobs.Abort(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("ref", ref).Warn("an unfinished layer is left until containerd's next cleanup")
	}
}

// compare is one attempt at Compare.
func (d *Differ) compare(ctx context.Context, lower, upper []mount.Mount, config diff.Config) (_ ocispec.Descriptor, err error) {
	blob, err := d.blobs.Writer(ctx, content.WithRef(config.Reference), content.WithDescriptor(ocispec.Descriptor{MediaType: config.MediaType}))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("open the content store: %w", err)
	}
	defer blob.Close()
	if err := blob.Truncate(0); err != nil { // of an earlier attempt
		return ocispec.Descriptor{}, fmt.Errorf("write to the content store: %w", err)
	}
	// Each write to the content store is a call of containerd.
	packed, err := compress(flusher{bufio.NewWriterSize(blob, readSize)}, config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	hash := sha256.New()
	var opts changes.Options
	if config.SourceDateEpoch != nil {
		opts.Latest = *config.SourceDateEpoch
	}
	err = d.layers.Changes(ctx, lower, upper, func(upper, lower []union.Place) error {
		return changes.Write(ctx, io.MultiWriter(packed, hash), upper, lower, opts)
	})
	if err := errors.Join(err, packed.Close()); err != nil {
		return ocispec.Descriptor{}, err
	}
	diffID := digest.NewDigest(digest.SHA256, hash)
	return commit(ctx, d.blobs, blob, config, diffID)
}

// commit completes a blob and returns its descriptor.
func commit(ctx context.Context, blobs content.Store, blob content.Writer, config diff.Config, diffID digest.Digest) (ocispec.Descriptor, error) {
	set := map[string]string{labels.LabelUncompressed: diffID.String()}
	for k, v := range config.Labels {
		set[k] = v
	}
	dgst := blob.Digest()
	err := blob.Commit(ctx, 0, dgst, content.WithLabels(set))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, fmt.Errorf("write to the content store: %w", err)
	}
	info, err := blobs.Info(ctx, dgst)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("look the new layer up in the content store: %w", err)
	}
	if info.Labels[labels.LabelUncompressed] == "" { // it was there before
		info.Labels = set
		if _, err := blobs.Update(ctx, info, "labels."+labels.LabelUncompressed); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("label the new layer: %w", err)
		}
	}
	return ocispec.Descriptor{MediaType: config.MediaType, Digest: dgst, Size: info.Size}, nil
}

// compress returns a writer that compresses to w, as config asks.
func compress(w io.WriteCloser, config diff.Config) (io.WriteCloser, error) {
	var packed io.WriteCloser
	var err error
	switch {
	case config.Compressor != nil:
		packed, err = config.Compressor(w, config.MediaType)
	case config.MediaType == ocispec.MediaTypeImageLayer:
		return w, nil
	case config.MediaType == ocispec.MediaTypeImageLayerGzip:
		packed = gzip.NewWriter(w)
	case config.MediaType == ocispec.MediaTypeImageLayerZstd:
		packed, err = zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	default:
		err = fmt.Errorf("layers of media type %q cannot be made, only of %s, plain, +gzip and +zstd: %w",
			config.MediaType, ocispec.MediaTypeImageLayer, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	return &stacked{packed, w}, nil
}

// stacked closes what it writes to after itself.
type stacked struct {
	io.WriteCloser
	under io.Closer
}

func (s *stacked) Close() error { return errors.Join(s.WriteCloser.Close(), s.under.Close()) }

// flusher is a buffer whose Close passes on what is left, and leaves open what it
// writes to.
type flusher struct{ *bufio.Writer }

func (f flusher) Close() error { return f.Flush() }
