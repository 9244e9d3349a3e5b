package sparsetar

import (
	"archive/tar"
	"encoding/binary"
	"io"
	"time"
)

// More fields of a header block; see header.go.
const (
	nameLen        = 100
	modeOffset     = 100
	uidOffset      = 108
	gidOffset      = 116
	idLen          = 8 // and that of a mode and of a device number
	timeOffset     = 136
	timeLen        = 12
	linkOffset     = 157
	ownerOffset    = 265
	groupOffset    = 297
	ownerLen       = 32
	majorOffset    = 329
	minorOffset    = 337
	prefixOffset   = 345
	prefixLen      = 155
	gnuAtimeOffset = 345
	gnuCtimeOffset = 357
	starOffset     = 508
)

const (
	ustarMagic  = "ustar\x00"
	starTrailer = "tar\x00"
)

// ordinary reads the headers of ordinary entries: files, directories, links,
// devices and FIFOs in the formats that tools write today, with what PAX records
// say of them. It makes of them what archive/tar makes, for a fraction of the time
// and the memory: a layer has thousands. Whatever else there is, it leaves to
// archive/tar, and whatever it is not sure of: it never finds an error itself.
type ordinary struct {
	hdr     tar.Header // the last one, which the next replaces
	records paxRecords

	// head is the padding before a header with the header's block. pax is a PAX
	// header's block and contents with the header that follows them.
	head [2 * blockSize]byte
	pax  []byte
}

// next reads the next header from s, behind pad bytes of padding. It returns nil for
// one that is not ordinary, which is then to be read from s again, without the
// padding. Its errors are archive/tar's of a stream that ends.
func (o *ordinary) next(s *source, pad int) (*tar.Header, error) {
	b := o.head[:pad+blockSize]
	switch n, err := io.ReadFull(s, b); {
	case n <= pad && err == io.ErrUnexpectedEOF:
		return nil, io.EOF // as in archive/tar, which takes missing padding for the end
	case err != nil:
		return nil, err
	}
	b = b[pad:]
	block := (*[blockSize]byte)(b)
	format := tar.FormatUSTAR | tar.FormatPAX | tar.FormatGNU
	ok := false
	if block[typeOffset] != tar.TypeXHeader {
		ok = o.entry(block, nil, format)
	} else if f := (fields{}); f.parse(block) && f.size <= maxSpecialSize {
		if b, ok = o.readPAX(s, block, int(f.size)); ok {
			last := (*[blockSize]byte)(b[len(b)-blockSize:])
			ok = o.entry(last, &o.records, format&f.format&tar.FormatPAX)
		}
	}
	if !ok {
		s.back = b
		return nil, nil
	}
	return &o.hdr, nil
}

// readPAX reads the contents of a PAX header, size bytes, and the block that follows
// them. It returns them behind the header's own block, or as much as there is, and
// says whether the records are ordinary.
func (o *ordinary) readPAX(s *source, header *[blockSize]byte, size int) (read []byte, ok bool) {
	total := blockSize + int(padded(int64(size))) + blockSize
	if cap(o.pax) < total {
		o.pax = make([]byte, total)
	}
	b := o.pax[:total]
	copy(b, header[:])
	n, err := io.ReadFull(s, b[blockSize:])
	if err != nil {
		return b[:blockSize+n], false
	}
	return b, o.records.parse(b[blockSize:][:size])
}

// entry sets the header to that of an entry whose header block is b, with PAX
// records if there are any. It says whether the entry is ordinary.
func (o *ordinary) entry(b *[blockSize]byte, pax *paxRecords, format tar.Format) bool {
	typ := b[typeOffset]
	var f fields
	if typ < tar.TypeReg || typ > tar.TypeFifo || !f.parse(b) {
		return false
	}
	format &= f.format
	if format&tar.FormatUSTAR != 0 && format&tar.FormatPAX != 0 {
		format &= tar.FormatUSTAR
	}
	h := &o.hdr
	owner, group := h.Uname, h.Gname
	*h = tar.Header{
		Typeflag: typ,
		Size:     f.size,
		Mode:     f.mode,
		Uid:      int(f.uid),
		Gid:      int(f.gid),
		ModTime:  time.Unix(f.mtime, 0),
		Devmajor: f.major,
		Devminor: f.minor,
		Format:   format,
	}
	if pax == nil || !pax.has(paxPath) {
		h.Name = name(b)
	}
	if pax == nil || !pax.has(paxLinkpath) {
		h.Linkname = string(cString(b[linkOffset:][:nameLen]))
	}
	h.Uname = again(owner, cString(b[ownerOffset:][:ownerLen]))
	h.Gname = again(group, cString(b[groupOffset:][:ownerLen]))
	if pax != nil {
		pax.apply(h)
	}
	return true
}

// name returns an entry's name with its prefix. The old GNU format has a time in its
// place, but an ordinary header has none.
func name(b *[blockSize]byte) string {
	short := cString(b[:nameLen])
	if b[prefixOffset] == 0 {
		return string(short)
	}
	var long [prefixLen + 1 + nameLen]byte
	n := copy(long[:], cString(b[prefixOffset:][:prefixLen]))
	long[n] = '/'
	n++
	n += copy(long[n:], short)
	return string(long[:n])
}

// again returns b as a string, which is often that of the entry before.
func again(last string, b []byte) string {
	if last == string(b) {
		return last
	}
	return string(b)
}

// cString returns what of b is before its first NUL.
func cString(b []byte) []byte {
	for i, c := range b {
		if c == 0 {
			return b[:i]
		}
	}
	return b
}

// fields are what a header block has besides strings.
type fields struct {
	mode, uid, gid, size, mtime, major, minor int64
	format                                    tar.Format // archive/tar's guess
}

// parse reads the fields of b. It says whether b is a header block in the form that
// tools write.
func (f *fields) parse(b *[blockSize]byte) bool {
	sum, ascii := sumASCII(b)
	want, ok := octal(b[checksumOffset:][:checksumLen])
	if !ok || sum != want {
		return false
	}
	ok = true
	number := func(offset, length int) int64 {
		n, digits := octal(b[offset:][:length])
		ok = ok && digits
		return n
	}
	f.mode = number(modeOffset, idLen)
	f.uid = number(uidOffset, idLen)
	f.gid = number(gidOffset, idLen)
	f.size = number(sizeOffset, sizeLen)
	f.mtime = number(timeOffset, timeLen)
	f.major = number(majorOffset, idLen)
	f.minor = number(minorOffset, idLen)
	if !ok {
		return false
	}
	switch {
	case isGNU(b):
		f.format = tar.FormatGNU
		return b[gnuAtimeOffset] == 0 && b[gnuCtimeOffset] == 0
	case string(b[magicOffset:][:len(ustarMagic)]) != ustarMagic || string(b[starOffset:]) == starTrailer:
		return false
	}
	// Each number but the checksum ends with a NUL, or it is no proper header.
	ends := b[modeOffset+idLen-1] | b[uidOffset+idLen-1] | b[gidOffset+idLen-1] | b[sizeOffset+sizeLen-1] |
		b[timeOffset+timeLen-1] | b[majorOffset+idLen-1] | b[minorOffset+idLen-1]
	f.format = tar.FormatUnknown
	if ascii && ends == 0 {
		f.format = tar.FormatUSTAR | tar.FormatPAX
	}
	return true
}

// octal reads octal digits that NULs and spaces may surround; nothing is zero. It is
// false for anything else. The longest field has 36 bits.
func octal(b []byte) (n int64, ok bool) {
	i := 0
	for i < len(b) && (b[i] == ' ' || b[i] == 0) {
		i++
	}
	for i < len(b) && b[i]-'0' <= 7 {
		n = n<<3 | int64(b[i]-'0')
		i++
	}
	for i < len(b) {
		if b[i] != ' ' && b[i] != 0 {
			return 0, false
		}
		i++
	}
	return n, true
}

// sumASCII is the unsigned sum of checksums, and says whether all bytes are ASCII.
// It adds up eight bytes at a time, in four lanes of 16 bits: each gets 128 bytes.
func sumASCII(b *[blockSize]byte) (sum int64, ascii bool) {
	const lanes = 0x00FF_00FF_00FF_00FF
	var lane, seen uint64
	for i := 0; i < blockSize; i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		seen |= w
		lane += w&lanes + w>>8&lanes
	}
	for ; lane != 0; lane >>= 16 {
		sum += int64(lane & 0xFFFF)
	}
	for _, c := range b[checksumOffset:][:checksumLen] {
		sum += ' ' - int64(c)
	}
	return sum, seen&0x8080_8080_8080_8080 == 0
}
