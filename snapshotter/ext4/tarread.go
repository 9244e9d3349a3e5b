package ext4

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
)

// Whiteouts in a layer's tar (OCI image-spec layer.md, "Whiteouts"). Other names
// that begin with metaPrefix are AUFS's own and mean nothing here.
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

// paxXattr begins the PAX records that hold extended attributes.
const paxXattr = "SCHILY.xattr."

// countingReader bounds a tar stream. It hides other methods of its reader:
// archive/tar would seek past contents, which would then not be hashed.
type countingReader struct {
	r    io.Reader
	left int64
	max  int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, c.tooLarge()
	}
	return n, err
}

func (c *countingReader) tooLarge() error {
	return fmt.Errorf("the uncompressed layer is larger than %d bytes (limit MaxBytes): %w", c.max, errdefs.ErrResourceExhausted)
}

func (w *LayerWriter) readTar(ctx context.Context, r io.Reader) error {
	in := &countingReader{r: r, left: w.opts.MaxBytes, max: w.opts.MaxBytes}
	w.in = in
	tr := sparsetar.NewReader(in)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF { //nolint:errorlint // archive/tar returns it bare; a wrapped one is an error of r
			break
		}
		if err != nil {
			return tarError(err)
		}
		w.entries++
		if err := w.add(ctx, hdr, tr); err != nil {
			return fmt.Errorf("layer entry %q: %w", hdr.Name, tarError(err))
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	return nil
}

// tarError says what archive/tar's errors mean for a layer.
func tarError(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the layer's tar is truncated: %w (%w)", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("the layer's tar is damaged: %w (%w)", err, errdefs.ErrInvalidArgument)
	}
	return err
}

// add puts one entry of the tar into the tree.
func (w *LayerWriter) add(ctx context.Context, hdr *tar.Header, body *sparsetar.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := cleanPath(hdr.Name)
	if err != nil {
		return err
	}
	if path == "" {
		return w.addRoot(hdr)
	}
	dirPath, name := splitPath(path)
	if strings.Contains(path, whiteoutPrefix) {
		if done, err := w.addWhiteout(dirPath, name); done || err != nil {
			return err
		}
	}
	p, err := w.parent(dirPath)
	if err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeLink {
		return w.addLink(p.dir, name, hdr.Linkname)
	}
	n, err := w.newNode(ctx, hdr, body)
	if err != nil {
		return err
	}
	if err := w.charge(len(name) + len(n.target)); err != nil {
		return err
	}
	if old := p.dir.lookup(name); old != nil && old.isDir() && n.isDir() {
		old.setMeta(n)
		return nil
	}
	w.replace(p.dir, name, n)
	if n.isDir() {
		n.dir.parent = p
	}
	return nil
}

// replace makes name in d stand for n alone.
func (w *LayerWriter) replace(d *dir, name string, n *inode) {
	if i := d.find(name); i >= 0 {
		old := d.entries[i].node
		d.remove(i)
		w.drop(old)
	}
	n.links++
	d.put(strings.Clone(name), n)
}

// setMeta gives a directory that is there already what a later entry says.
func (n *inode) setMeta(from *inode) {
	n.mode, n.uid, n.gid, n.xattrs = from.mode, from.uid, from.gid, from.xattrs
	n.mtime, n.atime, n.ctime = from.mtime, from.atime, from.ctime
}

func (w *LayerWriter) addRoot(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("the layer's root is not a directory: %w", errdefs.ErrInvalidArgument)
	}
	n, err := w.newNode(context.Background(), hdr, nil)
	if err != nil {
		return err
	}
	w.root.setMeta(n)
	return nil
}

// addWhiteout takes entries that are no files: whiteouts, opaque markers and
// AUFS's metadata.
func (w *LayerWriter) addWhiteout(dirPath, name string) (done bool, err error) {
	for part := range strings.SplitSeq(dirPath, "/") {
		if strings.HasPrefix(part, metaPrefix) {
			return true, nil
		}
		if strings.HasPrefix(part, whiteoutPrefix) {
			return true, fmt.Errorf("a whiteout cannot have entries below it: %w", errdefs.ErrInvalidArgument)
		}
	}
	if !strings.HasPrefix(name, whiteoutPrefix) {
		return false, nil
	}
	if strings.HasPrefix(name, metaPrefix) && name != opaqueName {
		return true, nil
	}
	p, err := w.parent(dirPath)
	if err != nil {
		return true, err
	}
	if name == opaqueName {
		p.dir.opaque = true
		return true, nil
	}
	hidden := name[len(whiteoutPrefix):]
	if err := checkName(hidden); err != nil {
		return true, fmt.Errorf("whiteout: %w", err)
	}
	if err := w.charge(len(hidden)); err != nil {
		return true, err
	}
	p.dir.whiteouts = append(p.dir.whiteouts, strings.Clone(hidden))
	return true, nil
}

func (w *LayerWriter) addLink(d *dir, name, link string) error {
	path, err := cleanPath(link)
	if err != nil {
		return fmt.Errorf("hard link target: %w", err)
	}
	target := w.lookup(path)
	if target != nil && target.mode == 0 {
		target, path = nil, target.target // a link that waits itself: for the same file
	}
	if target == nil {
		if err := w.charge(len(name) + len(path)); err != nil {
			return err
		}
		n := &inode{target: strings.Clone(path)} // a placeholder: no mode
		w.replace(d, name, n)
		w.pending = append(w.pending, pendingLink{d, strings.Clone(name), n})
		return nil
	}
	if target.isDir() {
		return fmt.Errorf("hard link to the directory %q: %w", link, errdefs.ErrInvalidArgument)
	}
	if err := w.charge(len(name)); err != nil {
		return err
	}
	if d.lookup(name) == target {
		return nil // a link to itself
	}
	if target.links >= maxLinks {
		return tooManyLinks(link)
	}
	w.replace(d, name, target)
	return nil
}

func tooManyLinks(path string) error {
	return fmt.Errorf("%q has more than the %d hard links that ext4 allows: %w", path, maxLinks, errdefs.ErrResourceExhausted)
}

// newNode makes an inode of a header and its contents.
func (w *LayerWriter) newNode(ctx context.Context, hdr *tar.Header, body *sparsetar.Reader) (_ *inode, err error) {
	const maxID = 1<<32 - 2 // the largest is "no id"
	if hdr.Uid < 0 || hdr.Uid > maxID || hdr.Gid < 0 || hdr.Gid > maxID {
		return nil, fmt.Errorf("owner %d:%d is out of range: %w", hdr.Uid, hdr.Gid, errdefs.ErrInvalidArgument)
	}
	n := &inode{
		mode:  uint16(hdr.Mode & modePerm),
		uid:   uint32(hdr.Uid),
		gid:   uint32(hdr.Gid),
		mtime: encodeTime(hdr.ModTime),
	}
	n.atime, n.ctime = n.mtime, n.mtime
	setIf := func(ts *timestamp, t time.Time) {
		if !t.IsZero() {
			*ts = encodeTime(t)
		}
	}
	setIf(&n.atime, hdr.AccessTime)
	setIf(&n.ctime, hdr.ChangeTime)

	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		n.mode |= modeRegular
		if hdr.Size > maxFileSize {
			return nil, fmt.Errorf("a file of %d bytes is larger than ext4's limit of %d: %w", hdr.Size, int64(maxFileSize), errdefs.ErrInvalidArgument)
		}
		n.size = hdr.Size
		if n.extents, err = w.contents(ctx, body, hdr.Size); err != nil {
			return nil, err
		}
	case tar.TypeDir:
		n.mode |= modeDir
		n.dir = &dir{}
	case tar.TypeSymlink:
		n.mode = modeSymlink | 0o777
		if hdr.Linkname == "" {
			return nil, fmt.Errorf("symlink without a target: %w", errdefs.ErrInvalidArgument)
		}
		if len(hdr.Linkname) > maxSymlinkLen {
			return nil, fmt.Errorf("symlink target of %d bytes is longer than ext4's limit of %d: %w", len(hdr.Linkname), maxSymlinkLen, errdefs.ErrInvalidArgument)
		}
		if strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return nil, fmt.Errorf("symlink target has a NUL: %w", errdefs.ErrInvalidArgument)
		}
		// A copy: the header's may be part of a megabyte of PAX records.
		n.target, n.size = strings.Clone(hdr.Linkname), int64(len(hdr.Linkname))
	case tar.TypeChar, tar.TypeBlock:
		n.mode |= modeChar
		if hdr.Typeflag == tar.TypeBlock {
			n.mode = n.mode&modePerm | modeBlock
		}
		// The kernel's dev_t: 12 bits of major, 20 of minor.
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return nil, fmt.Errorf("device number %d:%d is out of range: %w", hdr.Devmajor, hdr.Devminor, errdefs.ErrInvalidArgument)
		}
		n.major, n.minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	case tar.TypeFifo:
		n.mode |= modeFIFO
	default:
		return nil, fmt.Errorf("tar entries of type %q are not supported: %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
	}
	return n, w.setXattrs(n, hdr.PAXRecords)
}

// contents streams a file's contents into the image.
func (w *LayerWriter) contents(ctx context.Context, body *sparsetar.Reader, size int64) ([]extent, error) {
	if list, sparse := body.Fragments(); sparse {
		return w.sparseContents(ctx, body, list, size)
	}
	if size > w.in.left {
		return nil, w.in.tooLarge()
	}
	sink := fileSink{w: w.out}
	err := sink.readFrom(ctx, body, size)
	return sink.extents, err
}

// setXattrs takes the extended attributes of a header. Those that the kernel
// would not let a process set on such a file are left out, as extraction with
// any tool does: other systems' namespaces, user.* on what is no file or
// directory, default ACLs on what is no directory. So is trusted.overlay.*: it
// would let a layer direct the overlay that is later made of it.
func (w *LayerWriter) setXattrs(n *inode, records map[string]string) error {
	var attrs []xattr
	typ := n.mode & modeFmt
	for key, value := range records {
		full, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		index, name, ok := splitXattrName(full)
		if !ok || index == xattrTrusted && strings.HasPrefix(name, "overlay.") {
			continue
		}
		x := xattr{index, name, []byte(value)}
		switch index {
		case xattrUser:
			if typ != modeRegular && typ != modeDir {
				continue
			}
		case xattrACLAccess, xattrACLDefault:
			if typ == modeSymlink || index == xattrACLDefault && typ != modeDir {
				continue
			}
			acl, err := parseACLXattr(x.value)
			if err != nil {
				return fmt.Errorf("%s: %w", full, err)
			}
			if index == xattrACLAccess && acl != nil {
				var plain bool
				if n.mode, plain = aclMode(n.mode, acl); plain {
					continue
				}
			}
			if acl == nil {
				continue
			}
			x.value = diskACL(acl)
		}
		if index != xattrACLAccess && index != xattrACLDefault && name == "" || strings.IndexByte(name, 0) >= 0 || len(full) > maxNameLen {
			return fmt.Errorf("extended attribute name %.80q: %w", full, errdefs.ErrInvalidArgument)
		}
		attrs = append(attrs, x)
	}
	set, err := w.intern(attrs)
	n.xattrs = set
	return err
}

// intern returns the set of attrs, the same for equal ones.
func (w *LayerWriter) intern(attrs []xattr) (*xattrSet, error) {
	if len(attrs) == 0 {
		return nil, nil
	}
	set, err := newXattrSet(attrs)
	if err != nil {
		return nil, err
	}
	key := xattrKey(attrs)
	if known := w.attrs[key]; known != nil {
		return known, nil
	}
	w.meta += 2 * int64(len(key)) // charge compares it with the limit
	w.attrs[key] = set
	return set, nil
}
