package sparsetar

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"strconv"
	"strings"
)

// WriteHeader writes the headers and the map of a sparse file to w, in version 1.0
// of the PAX format. hdr describes the file, with its apparent size; list says
// which data will follow, in order; all fragments but the last must be whole blocks
// of 512 bytes long, for GNU tar begins each with a block. After the headers w takes
// the data of the fragments, one after the other, and then Padding(list) zeros.
//
// archive/tar cannot write sparse files; what it writes before and after must
// have been flushed (tar.Writer.Flush).
func WriteHeader(w io.Writer, hdr *tar.Header, list []Fragment) error {
	list, err := checkMap(append([]Fragment(nil), list...), hdr.Size, stored(list))
	if err != nil {
		return err
	}
	for i, f := range list {
		if f.Length%blockSize != 0 && i < len(list)-1 {
			return fmt.Errorf("data of %d bytes at %d, more data follows: %w", f.Length, f.Offset, tar.ErrHeader)
		}
	}
	text := mapText(list, hdr.Size)
	if len(text) > maxSpecialSize {
		return errMapTooLong()
	}
	h := *hdr
	h.Format = tar.FormatPAX
	h.PAXRecords = maps.Clone(hdr.PAXRecords)
	if h.PAXRecords == nil {
		h.PAXRecords = map[string]string{}
	}
	for key, value := range map[string]string{
		keyMajor: "1", keyMinor: "0", keyName: hdr.Name, keyRealSize: strconv.FormatInt(hdr.Size, 10),
	} {
		h.PAXRecords[hiddenPrefix+strings.TrimPrefix(key, sparsePrefix)] = value
	}
	// The name that a reader shows which does not know the format, as GNU tar has it.
	dir, base := path.Split(hdr.Name)
	h.Name = dir + "GNUSparseFile.0/" + base
	h.Size = int64(len(text)) + stored(list)

	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		return err
	}
	if err := showRecords(b.Bytes()); err != nil {
		return err
	}
	b.Write(text)
	_, err = w.Write(b.Bytes())
	return err
}

// Padding is how many zeros follow the data of the fragments.
func Padding(list []Fragment) int64 { return -stored(list) & (blockSize - 1) }

func stored(list []Fragment) (n int64) {
	for _, f := range list {
		n += f.Length
	}
	return n
}

// mapText is the map as version 1.0 has it, in whole blocks. GNU tar takes the end
// of the last fragment for the file's: a hole there needs an empty one behind it.
func mapText(list []Fragment, size int64) []byte {
	if n := len(list); n == 0 || list[n-1].End() < size {
		list = append(list, Fragment{size, 0})
	}
	b := strconv.AppendInt(nil, int64(len(list)), 10)
	b = append(b, '\n')
	for _, f := range list {
		b = append(strconv.AppendInt(b, f.Offset, 10), '\n')
		b = append(strconv.AppendInt(b, f.Length, 10), '\n')
	}
	return append(b, make([]byte, -len(b)&(blockSize-1))...)
}

// showRecords shows the records of a sparse map that were hidden from archive/tar, in the PAX
// header that b begins with.
func showRecords(b []byte) error {
	if len(b) < 2*blockSize || b[typeOffset] != tar.TypeXHeader {
		return errors.New("archive/tar has written no PAX header")
	}
	size, err := parseNumeric(b[sizeOffset:][:sizeLen])
	if err != nil || size > int64(len(b)-blockSize) {
		return fmt.Errorf("archive/tar's PAX header of %d bytes: %w", size, tar.ErrHeader)
	}
	return renameRecords(b[blockSize:][:size], hiddenPrefix, sparsePrefix)
}
