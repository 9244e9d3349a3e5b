package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
)

// Defaults of LayerOptions.
const (
	DefaultRoot        = "root"
	DefaultMaxEntries  = 4 << 20
	DefaultMaxBytes    = 256 << 30
	DefaultMaxMetadata = 1 << 30
)

// LayerOptions says where a layer's tree goes and what a layer may cost. A
// limit that is zero has its default.
type LayerOptions struct {
	// Root is the name of the directory in the image's root that holds the
	// layer's tree. The image's root also has lost+found.
	Root string
	// MaxEntries bounds the tar's entries and the directories they imply.
	MaxEntries int
	// MaxBytes bounds the uncompressed tar stream: a decompression bomb ends
	// here. The holes of sparse files are not in the stream and do not count; a
	// file's apparent size is bounded by ext4 alone. But data of theirs that
	// fills a block only in part counts as the whole block that it takes.
	MaxBytes int64
	// MaxMetadata bounds the bytes of names, link targets, extended attributes
	// and sparse files' maps, which stay in memory until Finish.
	MaxMetadata int64
}

// Stats describes a finished image.
type Stats struct {
	// Entries is the number of entries read from the tar.
	Entries int
	// Inodes is the number of files, directories and whiteouts in the image.
	Inodes int
	// Size is the image file's size in bytes; Used what of it is not a hole.
	Size, Used int64
	// OpaqueRoot is set if the layer hides all layers below it. overlayfs does
	// not look for that in the root of a layer: whoever stacks layers must
	// leave the lower ones out.
	OpaqueRoot bool
}

// LayerWriter converts one layer. It keeps the tree in memory, without file
// contents, until Finish.
type LayerWriter struct {
	f    *os.File
	opts LayerOptions
	out  *blockWriter
	in   *countingReader

	root    *inode // the layer's root
	nodes   int    // inodes alive, for the limit
	entries int
	meta    int64
	freed   []blockRange // contents of files that were replaced
	pending []pendingLink
	attrs   map[string]*xattrSet

	lastDir  string // the directory found last, and its node
	lastNode *inode
	began    bool
	err      error // what made the image unfit to finish
}

// blockRange is a run of blocks on disk.
type blockRange struct{ start, end uint64 }

// pendingLink is a hard link whose target had not come when the link did. Its
// node stands in the tree as a placeholder, without a mode and with the
// target's path.
type pendingLink struct {
	parent *dir
	name   string
	node   *inode
}

// NewLayerWriter returns a writer of a layer's image into f, an empty file
// opened for writing. The caller closes f, and removes it after an error.
func NewLayerWriter(f *os.File, opts LayerOptions) *LayerWriter {
	if opts.Root == "" {
		opts.Root = DefaultRoot
	}
	if opts.MaxEntries <= 0 {
		opts.MaxEntries = DefaultMaxEntries
	}
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = DefaultMaxBytes
	}
	if opts.MaxMetadata <= 0 {
		opts.MaxMetadata = DefaultMaxMetadata
	}
	return &LayerWriter{
		f:     f,
		opts:  opts,
		out:   newBlockWriter(f, layerDataStart),
		root:  &inode{mode: modeDir | 0o755, dir: &dir{}},
		attrs: map[string]*xattrSet{},
	}
}

// ReadTar reads one tar stream to its end, past the tar's own end marker, so
// that a hash over r covers the whole stream. An error is final: the image
// cannot be finished after it. Refused content gives errdefs.ErrInvalidArgument,
// an exceeded limit errdefs.ErrResourceExhausted.
func (w *LayerWriter) ReadTar(ctx context.Context, r io.Reader) error {
	if w.err == nil {
		w.err = w.begin()
	}
	if w.err == nil {
		w.err = w.readTar(ctx, r)
	}
	return w.err
}

func (w *LayerWriter) begin() error {
	if w.began {
		return errors.New("a layer's image takes one tar stream")
	}
	w.began = true
	if err := checkName(w.opts.Root); err != nil || w.opts.Root == "lost+found" {
		return fmt.Errorf("%q cannot name the layer's root directory: %w", w.opts.Root, errdefs.ErrInvalidArgument)
	}
	st, err := w.f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != 0 {
		return fmt.Errorf("%s is not empty: a layer's image needs a new file: %w", w.f.Name(), errdefs.ErrInvalidArgument)
	}
	return nil
}

// charge counts one entry and n bytes of metadata against the limits.
func (w *LayerWriter) charge(n int) error {
	w.nodes++
	if w.nodes > w.opts.MaxEntries {
		return fmt.Errorf("more than %d entries (limit MaxEntries): %w", w.opts.MaxEntries, errdefs.ErrResourceExhausted)
	}
	return w.chargeMeta(n)
}

// chargeMeta counts n bytes of metadata against their limit.
func (w *LayerWriter) chargeMeta(n int) error {
	w.meta += int64(n)
	if w.meta > w.opts.MaxMetadata {
		return fmt.Errorf("names, link targets, extended attributes and sparse maps take more than %d bytes (limit MaxMetadata): %w",
			w.opts.MaxMetadata, errdefs.ErrResourceExhausted)
	}
	return nil
}

// drop takes one name away from n, and what n holds if it was the last.
func (w *LayerWriter) drop(n *inode) {
	if n.isDir() {
		w.lastDir, w.lastNode = "", nil
		stack := []*dir{n.dir}
		n.links = 0
		for len(stack) > 0 {
			d := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			for _, e := range d.entries {
				switch {
				case e.node == nil:
				case e.node.isDir():
					e.node.links = 0
					stack = append(stack, e.node.dir)
				default:
					w.drop(e.node)
				}
			}
		}
		return
	}
	if n.links--; n.links > 0 {
		return
	}
	for _, e := range n.extents {
		w.freed = append(w.freed, blockRange{uint64(e.physical), uint64(e.physical) + uint64(e.count)})
	}
	n.extents = nil
}
