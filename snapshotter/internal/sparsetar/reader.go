// Package sparsetar reads tar streams with sparse files without making their
// holes.
//
// archive/tar knows the sparse formats but shows a sparse file only whole: it
// hands out each hole as zeros, which takes half an hour for a hole of 16 TiB.
// Reader shows the same entries with the same headers, and of a sparse file the
// data that the archive holds and where in the file it belongs.
//
// archive/tar still does the reading. Between it and the stream is a filter that
// makes sparse entries look plain; all else goes through it unchanged. The
// formats are described in the GNU tar manual ("Storing Sparse Files", "Basic
// Tar Format") and in POSIX (pax, "pax Extended Header").
package sparsetar

import (
	"archive/tar"
	"fmt"
	"io"
	"maps"
	"strings"
)

const blockSize = 512

// Reader reads a tar stream entry by entry, as tar.Reader does.
type Reader struct {
	f         *filter
	tr        *tar.Reader
	sparse    bool
	fragments []Fragment
	err       error // sticky
}

// NewReader returns a reader of r. It reads nothing ahead: after Next has
// returned io.EOF, r stands behind the archive's end marker.
func NewReader(r io.Reader) *Reader {
	f := &filter{src: r}
	return &Reader{f: f, tr: tar.NewReader(f)}
}

// Next goes to the next entry. Its header is the one that tar.Reader returns,
// except that a sparse file's PAXRecords lack the records of the sparse map; in
// particular Size is the file's apparent size.
//
// Errors are those of tar.Reader; what is wrong with a sparse map wraps
// tar.ErrHeader or io.ErrUnexpectedEOF.
func (r *Reader) Next() (*tar.Header, error) {
	r.sparse, r.fragments = false, nil
	if r.err != nil {
		return nil, r.err
	}
	r.f.begin()
	hdr, err := r.tr.Next()
	if hdr == nil { // tar.ErrInsecurePath comes with a header
		r.err = err
		return nil, err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return hdr, err // has been read with its contents
	}
	if serr := r.enter(hdr); serr != nil {
		r.err = fmt.Errorf("sparse file %.255q: %w", hdr.Name, serr)
		return nil, r.err
	}
	return hdr, err
}

// enter prepares for the contents of the entry whose header archive/tar has
// just read. The stream stands behind the header's block.
func (r *Reader) enter(hdr *tar.Header) error {
	f := r.f
	stored := hdr.Size
	if headerOnly(hdr.Typeflag) {
		stored = 0
	}
	if f.pax == nil && f.gnu == nil {
		f.expect(stored)
		return nil
	}

	r.sparse = true
	maps.DeleteFunc(hdr.PAXRecords, func(key, _ string) bool { return strings.HasPrefix(key, hiddenPrefix) })
	var list []Fragment
	var err error
	if f.gnu != nil { // goes before PAX records in archive/tar too
		hdr.Typeflag = tar.TypeGNUSparse
		if list, hdr.Size, err = readGNUMap(f.gnu, f.src); err != nil {
			return err
		}
		f.expect(stored)
	} else {
		if headerOnly(hdr.Typeflag) {
			return fmt.Errorf("an entry of type %q: %w", hdr.Typeflag, tar.ErrHeader)
		}
		f.expect(stored)
		if err := f.pax.apply(hdr); err != nil {
			return err
		}
		var n int64
		if list, n, err = f.pax.fragments(r.tr); err != nil {
			return err
		}
		stored -= n
	}
	r.fragments, err = checkMap(list, hdr.Size, stored)
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
	return r.tr.Read(p)
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
