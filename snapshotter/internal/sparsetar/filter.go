package sparsetar

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
)

// maxSpecialSize bounds PAX records and sparse maps, as in archive/tar.
const maxSpecialSize = 1 << 20

// filter stands between the stream and archive/tar and makes sparse entries
// look plain: a PAX header's records of the sparse map get another name, and an
// old GNU header gets the type of a regular file.
//
// A filter is for one entry's headers. It depends on archive/tar reading one block
// for each header and nothing ahead. So when tar.Reader.Next returns, the header
// block of that entry was the last to go through, and the entry's contents follow in
// src. Their size, which PAX records have a say in, is then known from archive/tar;
// the filter finds only the size of headers' own contents by itself. Whatever
// archive/tar refuses may go through as it is.
type filter struct {
	src  *source
	out  []byte // to hand out before anything else
	left uint64 // bytes to the next header block that go straight through
	raw  bool   // the end: all goes straight through
	err  error  // of src, once out has been handed out

	block [blockSize]byte
	buf   []byte // a PAX header with its contents

	pax *paxMap          // of the PAX header before the entry, if it makes that sparse
	gnu *[blockSize]byte // the entry's header block, if it is of the old GNU format
}

// begin forgets the entry before, but not its room for a PAX header.
func (f *filter) begin(src *source) { *f = filter{src: src, buf: f.buf} }

// padded rounds up to whole blocks. A size near the largest needs the sign bit.
func padded(size int64) uint64 { return (uint64(size) + blockSize - 1) &^ (blockSize - 1) }

func (f *filter) Read(p []byte) (int, error) {
	if len(f.out) == 0 && f.left == 0 && !f.raw && f.err == nil {
		f.header()
	}
	switch {
	case len(f.out) > 0:
		n := copy(p, f.out)
		f.out = f.out[n:]
		return n, nil
	case f.err != nil:
		return 0, f.err
	case f.raw:
		return f.src.Read(p)
	}
	if uint64(len(p)) > f.left {
		p = p[:f.left]
	}
	n, err := f.src.Read(p)
	f.left -= uint64(n)
	return n, err
}

// fill reads into b from the stream. What there is less goes out as it is, for
// archive/tar to judge.
func (f *filter) fill(b []byte) (n int, ok bool) {
	n, err := io.ReadFull(f.src, b)
	if err == nil {
		return n, true
	}
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	f.err = err
	return n, false
}

var zeroBlock [blockSize]byte

// header reads the next header block into out, and whatever else must be seen
// before archive/tar sees it.
func (f *filter) header() {
	b := &f.block
	n, ok := f.fill(b[:])
	f.out = b[:n]
	if !ok {
		return
	}
	switch typ := b[typeOffset]; typ {
	case tar.TypeXHeader, tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
		size, err := parseNumeric(b[sizeOffset:][:sizeLen])
		switch {
		case err != nil || size < 0:
			f.raw = true // archive/tar refuses it
		case typ == tar.TypeXHeader && size <= maxSpecialSize:
			f.paxHeader(int(size))
		default:
			f.left = padded(size)
		}
	case tar.TypeGNUSparse:
		f.gnuHeader()
	default:
		f.raw = bytes.Equal(b[:], zeroBlock[:])
	}
}

// paxHeader reads the contents of a PAX header and hides what it says of a
// sparse map.
func (f *filter) paxHeader(size int) {
	f.pax = nil // a PAX header replaces the one before
	f.buf = append(f.buf[:0], f.block[:]...)
	total := blockSize + int(padded(int64(size)))
	if cap(f.buf) < total {
		f.buf = append(make([]byte, 0, total), f.buf...)
	}
	f.buf = f.buf[:total]
	n, ok := f.fill(f.buf[blockSize:])
	f.out = f.buf[:blockSize+n]
	if !ok && n < size {
		return
	}
	records := f.buf[blockSize:][:size]
	if !bytes.Contains(records, []byte(sparsePrefix)) {
		return // nearly all of them: nothing to parse
	}
	pax, err := parsePAX(records)
	if err != nil {
		f.out, f.err = nil, fmt.Errorf("PAX header: %w", err)
		return
	}
	if pax.sparse() {
		f.pax = pax
		_ = renameRecords(records, sparsePrefix, hiddenPrefix) // they have been parsed
	}
}

// gnuHeader turns an old GNU header of a sparse file into one of a regular file.
// Its other fields stay: archive/tar takes some of their bytes for a name's
// prefix if times do not parse.
func (f *filter) gnuHeader() {
	b := &f.block
	if !isGNU(b) || !checksumOK(b) {
		return // archive/tar refuses it
	}
	gnu := *b
	f.gnu = &gnu
	b[typeOffset] = tar.TypeReg
	setChecksum(b)
}
