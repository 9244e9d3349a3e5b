// Package sparsetest writes sparse files into tars as GNU tar does, for tests
// that need maps which GNU tar would not make of a file.
package sparsetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
)

const blockSize = 512

// Formats names the formats of sparse files that there are.
var Formats = []string{"GNU", "PAX 0.0", "PAX 0.1", "PAX 1.0"}

// File is a sparse file.
type File struct {
	Name      string
	Size      int64 // apparent
	Fragments []sparsetar.Fragment
	Data      []byte // of the fragments, one after the other
}

// End ends a tar.
func End() []byte { return make([]byte, 2*blockSize) }

// Append appends an entry to a tar. Nothing is checked, so that tests can write
// what is wrong.
func Append(b []byte, format string, f File) []byte {
	if format == "GNU" {
		return appendGNU(b, f)
	}
	size := strconv.FormatInt(f.Size, 10)
	data := f.Data
	var records []string
	record := func(key, value string) { records = append(records, "GNU.sparse."+key+"="+value) }
	numbers := make([]string, 0, 2*len(f.Fragments))
	for _, fr := range f.Fragments {
		numbers = append(numbers, strconv.FormatInt(fr.Offset, 10), strconv.FormatInt(fr.Length, 10))
	}
	switch format {
	case "PAX 0.0":
		record("size", size)
		record("numblocks", strconv.Itoa(len(f.Fragments)))
		for i, n := range numbers {
			record([]string{"offset", "numbytes"}[i%2], n)
		}
		if len(numbers) == 0 {
			record("major", "0") // nothing else would tell
			record("minor", "0")
		}
		records = append(records, "path="+f.Name)
	case "PAX 0.1":
		record("major", "0")
		record("minor", "1")
		record("name", f.Name)
		record("size", size)
		record("numblocks", strconv.Itoa(len(f.Fragments)))
		record("map", strings.Join(numbers, ","))
	case "PAX 1.0":
		record("major", "1")
		record("minor", "0")
		record("name", f.Name)
		record("realsize", size)
		lines := append([]string{strconv.Itoa(len(f.Fragments))}, numbers...)
		data = append(pad([]byte(strings.Join(lines, "\n")+"\n")), data...)
	default:
		panic("no format " + format)
	}
	b = AppendPAX(b, records...)
	h := header("GNUSparseFile.0/placeholder", int64(len(data)), tar.TypeReg, false)
	Seal(&h)
	return pad(append(append(b, h[:]...), data...))
}

// AppendPAX appends a PAX header of records "key=value".
func AppendPAX(b []byte, records ...string) []byte {
	var text strings.Builder
	for _, r := range records {
		n := len(r) + 2
		for len(strconv.Itoa(n))+len(r)+2 != n {
			n = len(strconv.Itoa(n)) + len(r) + 2
		}
		fmt.Fprintf(&text, "%d %s\n", n, r)
	}
	h := header("PaxHeaders.0/x", int64(text.Len()), tar.TypeXHeader, false)
	Seal(&h)
	return pad(append(append(b, h[:]...), text.String()...))
}

func appendGNU(b []byte, f File) []byte {
	h := header(f.Name, int64(len(f.Data)), tar.TypeGNUSparse, true)
	number(h[483:495], f.Size)
	list := f.Fragments
	entries := func(b []byte, n int) {
		for i := range min(n, len(list)) {
			number(b[24*i:24*i+12], list[i].Offset)
			number(b[24*i+12:24*i+24], list[i].Length)
		}
		list = list[min(n, len(list)):]
		if len(list) > 0 {
			b[24*n] = 1
		}
	}
	entries(h[386:], 4)
	Seal(&h)
	b = append(b, h[:]...)
	for len(list) > 0 {
		var ext [blockSize]byte
		entries(ext[:], 21)
		b = append(b, ext[:]...)
	}
	return pad(append(b, f.Data...))
}

func header(name string, size int64, typ byte, gnu bool) (h [blockSize]byte) {
	copy(h[:100], name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	number(h[124:136], size)
	copy(h[136:], "00000000000\x00")
	h[156] = typ
	if copy(h[257:], "ustar\x0000"); gnu {
		copy(h[257:], "ustar  \x00")
	}
	return h
}

// number writes octal digits or, where they do not suffice, base-256.
func number(b []byte, n int64) {
	if n >= 0 && n < 1<<33 {
		copy(b, fmt.Sprintf("%011o\x00", n))
		return
	}
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte(n)
		n >>= 8
	}
	b[0] |= 0x80
}

// Seal gives a header its checksum.
func Seal(h *[blockSize]byte) {
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// pad fills up to whole blocks.
func pad(b []byte) []byte {
	return append(b, bytes.Repeat([]byte{0}, -len(b)&(blockSize-1))...)
}
