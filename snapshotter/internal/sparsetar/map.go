package sparsetar

import (
	"archive/tar"
	"fmt"
	"io"
	"math"
)

// Fragment is a stretch of a sparse file that the archive has the data of.
type Fragment struct{ Offset, Length int64 }

// End is the offset behind the fragment.
func (f Fragment) End() int64 { return f.Offset + f.Length }

// checkMap checks that fragments are in order within a file of size bytes and
// that their data is the stored bytes. It returns them, in place, without empty
// ones and with those joined that touch.
func checkMap(list []Fragment, size, stored int64) ([]Fragment, error) {
	if size < 0 {
		return nil, fmt.Errorf("a size of %d bytes: %w", size, tar.ErrHeader)
	}
	out := list[:0]
	var end, data int64
	for _, f := range list {
		switch {
		case f.Offset < 0 || f.Length < 0 || f.Offset > math.MaxInt64-f.Length:
			return nil, fmt.Errorf("data of %d bytes at %d: %w", f.Length, f.Offset, tar.ErrHeader)
		case f.End() > size:
			return nil, fmt.Errorf("data of %d bytes at %d in a file of %d: %w", f.Length, f.Offset, size, tar.ErrHeader)
		case f.Offset < end:
			return nil, fmt.Errorf("data at %d that follows data to %d: %w", f.Offset, end, tar.ErrHeader)
		}
		data += f.Length
		switch n := len(out); {
		case f.Length == 0:
		case n > 0 && f.Offset == out[n-1].End():
			out[n-1].Length += f.Length
		default:
			out = append(out, f)
		}
		end = f.End()
	}
	if data != stored {
		return nil, fmt.Errorf("a map of %d bytes of data for %d bytes: %w", data, stored, tar.ErrHeader)
	}
	return out, nil
}

// readGNUMap reads the map of an old GNU header and of the extension blocks that
// follow it in r, and the file's size.
func readGNUMap(header *[blockSize]byte, r io.Reader) ([]Fragment, int64, error) {
	size, err := parseNumeric(header[gnuRealSizeOffset:][:mapNumberLen])
	if err != nil {
		return nil, 0, err
	}
	var list []Fragment
	// add appends the entries of one block and says whether another follows.
	add := func(b []byte, entries int) (more bool, err error) {
		for i := range entries {
			e := b[i*mapEntryLen:][:mapEntryLen]
			if e[0] == 0 {
				break // as GNU tar does; an extension may follow all the same
			}
			offset, err1 := parseNumeric(e[:mapNumberLen])
			length, err2 := parseNumeric(e[mapNumberLen:])
			if err1 != nil || err2 != nil {
				return false, tar.ErrHeader
			}
			list = append(list, Fragment{offset, length})
		}
		return b[entries*mapEntryLen] != 0, nil
	}
	more, err := add(header[gnuMapOffset:], gnuMapEntries)
	var b [blockSize]byte
	for total := 0; more && err == nil; {
		if total += blockSize; total >= maxSpecialSize {
			return nil, 0, errMapTooLong()
		}
		if err := readFull(r, b[:]); err != nil {
			return nil, 0, err
		}
		more, err = add(b[:], extMapEntries)
	}
	return list, size, err
}

func errMapTooLong() error {
	return fmt.Errorf("a sparse map larger than %d bytes: %w", maxSpecialSize, tar.ErrHeader)
}

// readFull fills b. A stream that ends before is truncated.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
