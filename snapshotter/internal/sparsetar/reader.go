// Package sparsetar reads tar streams with sparse files without making their
// holes.
//
// archive/tar knows the sparse formats but shows a sparse file only whole: it
// hands out each hole as zeros, which takes half an hour for a hole of 16 TiB.
// Reader shows the same entries with the same headers, and of a sparse file the
// data that the archive holds and where in the file it belongs.
//
// What is not ordinary, archive/tar still reads. Between it and the stream is then a
// filter that makes sparse entries look plain; all else goes through it unchanged.
// The formats are described in the GNU tar manual ("Storing Sparse Files", "Basic
// Tar Format") and in POSIX (pax, "pax Extended Header").
package sparsetar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
)

const blockSize = 512

// Reader reads a tar stream entry by entry, as tar.Reader does.
type Reader struct {
	src       source
	ordinary  ordinary
	filter    filter
	left      int64 // of the contents
	pad       int   // bytes behind them, to the next header
	sparse    bool
	fragments []Fragment
	err       error // sticky
}

// NewReader returns a reader of r. It reads nothing ahead: after Next has
// returned io.EOF, r stands behind the archive's end marker.
func NewReader(r io.Reader) *Reader { return &Reader{src: source{r: r}} }

// Next goes to the next entry. Its header is the one that tar.Reader returns,
// except that a sparse file's PAXRecords lack the records of the sparse map; in
// particular Size is the file's apparent size. The header and its maps are used
// again by the next call.
//
// Errors are those of tar.Reader without tar.ErrInsecurePath; what is wrong with a
// sparse map wraps tar.ErrHeader or io.ErrUnexpectedEOF.
func (r *Reader) Next() (*tar.Header, error) {
	r.sparse, r.fragments = false, nil
	if r.err != nil {
		return nil, r.err
	}
	if r.err = r.skip(); r.err != nil {
		return nil, r.err
	}
	hdr, err := r.ordinary.next(&r.src, r.pad)
	if err != nil {
		r.err = err
		return nil, err
	}
	if hdr != nil {
		r.expect(storedSize(hdr))
		return hdr, nil
	}
	return r.unusual()
}

// skip reads what is left of the current entry's contents.
func (r *Reader) skip() error {
	if r.left == 0 {
		return nil
	}
	n, err := io.CopyN(io.Discard, &r.src, r.left)
	if r.left -= n; err == io.EOF { //nolint:errorlint // a wrapped one is an error of the stream
		err = io.ErrUnexpectedEOF
	}
	return err
}

// expect says that the stream stands before contents of size bytes.
func (r *Reader) expect(size int64) { r.left, r.pad = size, int(padded(size)-uint64(size)) }

// unusual reads the next header by archive/tar. The stream stands before it.
func (r *Reader) unusual() (*tar.Header, error) {
	r.filter.begin(&r.src)
	// A reader of its own for each such entry: another would not know of those that
	// are read without it.
	hdr, err := tar.NewReader(&r.filter).Next()
	if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
		r.err = err
		return nil, err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		r.left, r.pad = 0, int(r.filter.left) // the contents have been read
		return hdr, nil
	}
	if err := r.enter(hdr); err != nil {
		r.err = fmt.Errorf("sparse file %.255q: %w", hdr.Name, err)
		return nil, r.err
	}
	return hdr, nil
}

// enter prepares for the contents of the entry whose header archive/tar has
// just read. The stream stands behind the header's block.
func (r *Reader) enter(hdr *tar.Header) error {
	f := &r.filter
	size := storedSize(hdr)
	if f.pax == nil && f.gnu == nil {
		r.expect(size)
		return nil
	}

	r.sparse = true
	maps.DeleteFunc(hdr.PAXRecords, func(key, _ string) bool { return strings.HasPrefix(key, hiddenPrefix) })
	var list []Fragment
	var err error
	if f.gnu != nil { // goes before PAX records in archive/tar too
		hdr.Typeflag = tar.TypeGNUSparse
		if list, hdr.Size, err = readGNUMap(f.gnu, &r.src); err != nil {
			return err
		}
		r.expect(size)
	} else {
		if headerOnly(hdr.Typeflag) {
			return fmt.Errorf("an entry of type %q: %w", hdr.Typeflag, tar.ErrHeader)
		}
		r.expect(size)
		if err := f.pax.apply(hdr); err != nil {
			return err
		}
		if list, err = f.pax.fragments(r); err != nil {
			return err
		}
	}
	r.fragments, err = checkMap(list, hdr.Size, r.left)
	return err
}

// Fragments returns where the current entry's data belongs in the file, and
// whether it is sparse at all. The fragments are in order, none is empty, and
// two never touch.
func (r *Reader) Fragments() (list []Fragment, sparse bool) { return r.fragments, r.sparse }

// Read reads the current entry's contents; of a sparse file the data of its
// fragments, one after the other.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n := 0
	var err error
	if len(p) > 0 {
		n, err = r.src.Read(p)
		r.left -= int64(n)
	}
	ended := err == io.EOF //nolint:errorlint // a wrapped one is an error of the stream
	switch {
	case r.left == 0 && (err == nil || ended):
		return n, io.EOF
	case ended:
		err = io.ErrUnexpectedEOF
	}
	r.err = err
	return n, err
}

// storedSize returns how many bytes of contents follow an entry's header.
func storedSize(hdr *tar.Header) int64 {
	if headerOnly(hdr.Typeflag) {
		return 0
	}
	return hdr.Size
}

// headerOnly says whether entries of a type have no contents, whatever their
// header says of the size.
func headerOnly(typ byte) bool {
	switch typ {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return true
	}
	return false
}
