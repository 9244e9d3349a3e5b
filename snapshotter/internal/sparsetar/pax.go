package sparsetar

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Keywords of sparse files in PAX headers (GNU tar manual, "PAX Format, Versions
// 0.0 and 0.1" and "PAX Format, Version 1.0").
const (
	sparsePrefix = "GNU.sparse."

	keyMajor     = sparsePrefix + "major"
	keyMinor     = sparsePrefix + "minor"
	keyName      = sparsePrefix + "name"
	keySize      = sparsePrefix + "size"
	keyRealSize  = sparsePrefix + "realsize"
	keyNumBlocks = sparsePrefix + "numblocks"
	keyOffset    = sparsePrefix + "offset"
	keyNumBytes  = sparsePrefix + "numbytes"
	keyMap       = sparsePrefix + "map"
)

// hiddenPrefix takes the place of sparsePrefix in what archive/tar sees: it is as
// long, so that the lengths of records stay right.
const hiddenPrefix = "gnu.sparse."

// paxMap is what a PAX header says of a sparse file.
type paxMap struct {
	records map[string]string // those with sparsePrefix
}

// parsePAX reads a PAX header's records. Version 0.0 repeats keys, one pair for
// each fragment; they are joined to the map of version 0.1, as in archive/tar.
func parsePAX(b []byte) (*paxMap, error) {
	m := &paxMap{map[string]string{}}
	var list []string
	for s := string(b); s != ""; {
		key, value, rest, err := cutRecord(s)
		if err != nil {
			return nil, err
		}
		s = rest
		switch {
		case key == keyOffset || key == keyNumBytes:
			if (key == keyOffset) != (len(list)%2 == 0) || strings.IndexByte(value, ',') >= 0 {
				return nil, fmt.Errorf("%s out of place: %w", key, tar.ErrHeader)
			}
			list = append(list, value)
		case strings.HasPrefix(key, sparsePrefix):
			m.records[key] = value
		}
	}
	if len(list) > 0 {
		m.records[keyMap] = strings.Join(list, ",")
	}
	return m, nil
}

// cutRecord takes the first record, "length key=value\n", off s.
func cutRecord(s string) (key, value, rest string, err error) {
	digits, tail, ok := strings.Cut(s, " ")
	n, perr := strconv.ParseInt(digits, 10, 0)
	if !ok || perr != nil || n > int64(len(s)) {
		return "", "", "", fmt.Errorf("length of a record: %w", tar.ErrHeader)
	}
	n -= int64(len(digits)) + 1
	if n <= 0 || tail[n-1] != '\n' {
		return "", "", "", fmt.Errorf("length of a record: %w", tar.ErrHeader)
	}
	key, value, ok = strings.Cut(tail[:n-1], "=")
	if !ok || key == "" || strings.IndexByte(key, 0) >= 0 {
		return "", "", "", fmt.Errorf("key of a record: %w", tar.ErrHeader)
	}
	return key, value, tail[n:], nil
}

// renameRecords gives the keys of records that begin with a prefix another one, in place. It
// must be as long.
func renameRecords(b []byte, from, to string) error {
	for s := string(b); s != ""; {
		key, value, rest, err := cutRecord(s)
		if err != nil {
			return err
		}
		if strings.HasPrefix(key, from) {
			end := len(b) - len(rest) - len("\n") - len(value) - len("=")
			copy(b[end-len(key):], to)
		}
		s = rest
	}
	return nil
}

// version1 says whether the map is of version 1.0.
func (m *paxMap) version1() bool { return m.records[keyMajor] == "1" && m.records[keyMinor] == "0" }

// sparse says whether the records are of a version that archive/tar takes for a
// sparse file. Those of any other leave the file as it is.
func (m *paxMap) sparse() bool {
	switch major, minor := m.records[keyMajor], m.records[keyMinor]; {
	case major == "0" && (minor == "0" || minor == "1"), m.version1():
		return true
	case major != "" || minor != "":
		return false
	}
	return m.records[keyMap] != "" // 0.0 and 0.1 without their number
}

// apply gives the header the file's name and apparent size.
func (m *paxMap) apply(hdr *tar.Header) error {
	if name := m.records[keyName]; name != "" {
		hdr.Name = name
	}
	size := m.records[keySize]
	if size == "" {
		size = m.records[keyRealSize]
	}
	if size == "" {
		return nil
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return fmt.Errorf("size %.40q: %w", size, tar.ErrHeader)
	}
	hdr.Size = n
	return nil
}

// fragments returns the map, which version 1.0 has at the begin of the entry's
// contents.
func (m *paxMap) fragments(contents io.Reader) ([]Fragment, error) {
	if m.version1() {
		return readMap10(contents)
	}
	n, err := strconv.ParseInt(m.records[keyNumBlocks], 10, 0)
	text := m.records[keyMap]
	numbers := 0
	if text != "" {
		numbers = strings.Count(text, ",") + 1
	}
	if err != nil || numbers%2 != 0 || n != int64(numbers/2) {
		return nil, fmt.Errorf("a map of %d numbers for %.40q fragments: %w", numbers, m.records[keyNumBlocks], tar.ErrHeader)
	}
	list := make([]Fragment, n)
	for i := range list {
		var offset, length string
		offset, text, _ = strings.Cut(text, ",")
		length, text, _ = strings.Cut(text, ",")
		if list[i], err = parseFragment(offset, length); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func parseFragment(offset, length string) (Fragment, error) {
	o, err1 := strconv.ParseInt(offset, 10, 64)
	l, err2 := strconv.ParseInt(length, 10, 64)
	if err1 != nil || err2 != nil {
		return Fragment{}, fmt.Errorf("data of %.40q bytes at %.40q: %w", length, offset, tar.ErrHeader)
	}
	return Fragment{o, l}, nil
}

// readMap10 reads a map of version 1.0: lines of one number each, first that of
// fragments, then each one's offset and length; what is left of the last block
// is padding. The numbers are decimal: the manual says octal, which GNU tar does
// not write.
func readMap10(r io.Reader) ([]Fragment, error) {
	var text []byte
	var read int64
	line := func() (string, error) {
		from := 0
		for {
			if i := bytes.IndexByte(text[from:], '\n'); i >= 0 {
				s := string(text[:from+i])
				text = text[from+i+1:]
				return s, nil
			}
			from = len(text)
			if read += blockSize; read > maxSpecialSize {
				return "", errMapTooLong()
			}
			var b [blockSize]byte
			if err := readFull(r, b[:]); err != nil {
				return "", err
			}
			text = append(text, b[:]...)
		}
	}
	first, err := line()
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseInt(first, 10, 0)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("%.40q fragments: %w", first, tar.ErrHeader)
	}
	var list []Fragment // grows with what is read, not with what n claims
	for range n {
		offset, err := line()
		if err != nil {
			return nil, err
		}
		length, err := line()
		if err != nil {
			return nil, err
		}
		f, err := parseFragment(offset, length)
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}
