package sparsetar

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strconv"
)

// Fields of a header block (GNU tar manual, "Basic Tar Format": struct
// posix_header, struct oldgnu_header, struct sparse_header).
const (
	sizeOffset     = 124
	sizeLen        = 12
	checksumOffset = 148
	checksumLen    = 8
	typeOffset     = 156
	magicOffset    = 257

	gnuMapOffset      = 386 // oldgnu_header.sp
	gnuMapEntries     = 4
	gnuRealSizeOffset = 483
	extMapEntries     = 21 // of an extension block, where they begin at 0
	mapEntryLen       = 24 // offset and length
	mapNumberLen      = 12
)

// gnuMagic is magic and version of the GNU format.
const gnuMagic = "ustar  \x00"

func isGNU(b *[blockSize]byte) bool {
	return string(b[magicOffset:][:len(gnuMagic)]) == gnuMagic
}

// checksums adds up a header's bytes, the checksum's own as spaces. The standard
// wants unsigned bytes; some writers take signed ones.
func checksums(b *[blockSize]byte) (unsigned, signed int64) {
	for i, c := range b {
		if checksumOffset <= i && i < checksumOffset+checksumLen {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return unsigned, signed
}

func checksumOK(b *[blockSize]byte) bool {
	unsigned, signed := checksums(b)
	sum, err := parseOctal(b[checksumOffset:][:checksumLen])
	return err == nil && (sum == unsigned || sum == signed)
}

func setChecksum(b *[blockSize]byte) {
	sum, _ := checksums(b)
	copy(b[checksumOffset:], fmt.Sprintf("%06o\x00 ", sum))
}

// parseNumeric reads a numeric field: octal digits or, with the first bit set,
// a big-endian two's complement number of the other bits (GNU's base-256).
func parseNumeric(b []byte) (int64, error) {
	if b[0]&0x80 == 0 {
		return parseOctal(b)
	}
	var invert byte
	if b[0]&0x40 != 0 {
		invert = 0xFF
	}
	var x uint64
	for i, c := range b {
		c ^= invert
		if i == 0 {
			c &= 0x7F
		}
		if x>>56 > 0 {
			return 0, tar.ErrHeader
		}
		x = x<<8 | uint64(c)
	}
	if x>>63 > 0 {
		return 0, tar.ErrHeader
	}
	if invert != 0 {
		return ^int64(x), nil
	}
	return int64(x), nil
}

// parseOctal reads octal digits that NULs and spaces surround. Nothing is zero.
func parseOctal(b []byte) (int64, error) {
	b = bytes.Trim(b, " \x00")
	if len(b) == 0 {
		return 0, nil
	}
	b, _, _ = bytes.Cut(b, []byte{0})
	x, err := strconv.ParseUint(string(b), 8, 64)
	if err != nil {
		return 0, tar.ErrHeader
	}
	return int64(x), nil
}
