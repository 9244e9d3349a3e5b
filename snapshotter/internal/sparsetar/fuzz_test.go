package sparsetar_test

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar/sparsetest"
)

// archiveTarTestdata returns the tars of archive/tar's own tests that are small
// enough: they have every format, and much that is wrong.
func archiveTarTestdata(t testing.TB) map[string][]byte {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(root)), "src/archive/tar/testdata/*.tar"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no testdata of archive/tar (%v)", err)
	}
	out := map[string][]byte{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) <= 128<<10 {
			out[filepath.Base(path)] = b
		}
	}
	return out
}

func TestSameAsArchiveTar(t *testing.T) {
	for name, b := range archiveTarTestdata(t) {
		t.Run(name, func(t *testing.T) {
			_, _ = compare(t, b)
			for _, n := range []int{100, 512, 600, 1024, 1500, len(b) - 1024, len(b) - 1, len(b) - 700} {
				if n >= 0 && n < len(b) {
					_, _ = compare(t, b[:n])
				}
			}
		})
	}
}

// FuzzSameAsArchiveTar changes tars. Checksums are corrected in half of them, or
// nearly every change would end there.
func FuzzSameAsArchiveTar(f *testing.F) {
	for _, b := range archiveTarTestdata(f) {
		if len(b) <= 8<<10 {
			f.Add(b, false)
			f.Add(b, true)
		}
	}
	list := []sparsetar.Fragment{{Offset: 3, Length: 5}, {Offset: 600}, {Offset: 700, Length: 300}, {Offset: 1000, Length: 24}, {Offset: 5000, Length: 1}, {Offset: 6000, Length: 1}, {Offset: 7000}}
	for _, format := range sparsetest.Formats {
		b := sparsetest.Append(nil, format, sparsetest.File{Name: "a", Size: 7000, Fragments: list, Data: bytes.Repeat([]byte("x"), 331)})
		b = sparsetest.Append(b, format, sparsetest.File{Name: "empty", Size: 7000})
		f.Add(append(b, sparsetest.End()...), true)
	}
	var long bytes.Buffer
	w := tar.NewWriter(&long)
	if err := w.WriteHeader(&tar.Header{Name: strings.Repeat("long/", 60), Linkname: strings.Repeat("l", 120), Typeflag: tar.TypeSymlink, Format: tar.FormatGNU}); err != nil {
		f.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		f.Fatal(err)
	}
	f.Add(sparsetest.Append(long.Bytes()[:long.Len()-512], "PAX 1.0", sparsetest.File{Name: "a/", Size: 10, Fragments: list[:1], Data: []byte("12345")}), true)
	f.Fuzz(func(t *testing.T, b []byte, correct bool) {
		if correct {
			b = bytes.Clone(b)
			seal(b, sparsetest.Seal)
		}
		_, _ = compare(t, b)
	})
}

// FuzzOrdinaryEntries changes what ordinary entries say: a field of the header
// block, and the PAX records, a line each, whose lengths are right. The block's
// checksum is, too.
func FuzzOrdinaryEntries(f *testing.F) {
	f.Add("path=a\nmtime=1.5\nSCHILY.xattr.user.a=b", []byte("0000017"), uint16(108), byte('0'), false, uint16(5000))
	f.Add("size=5\nuid=1\ngid=2\nuname=u\ngname=g\natime=1\nctime=2.000000001", []byte("x"), uint16(0), byte('0'), false, uint16(5000))
	f.Add("linkpath=a\nlinkpath=", []byte("target"), uint16(157), byte('2'), false, uint16(5000))
	f.Add("", []byte("prefix"), uint16(345), byte('5'), false, uint16(5000))
	f.Add("", []byte("12345678901 12345678901 "), uint16(345), byte('0'), true, uint16(5000))
	f.Add("GNU.sparse.major=1", []byte("tar\x00"), uint16(508), byte('x'), false, uint16(700))
	f.Fuzz(func(t *testing.T, records string, field []byte, at uint16, typ byte, gnu bool, cut uint16) {
		format := tar.FormatUSTAR
		if gnu {
			format = tar.FormatGNU
		}
		var b []byte
		if records != "" {
			b = sparsetest.AppendPAX(b, strings.Split(records, "\n")...)
		}
		entry := tarOf(t, tar.Header{Name: "dir/file", Size: 7, Mode: 0o644, Uname: "root", Gname: "root", Format: format})
		entry[typeOffset] = typ
		copy(entry[at%512:512], field)
		sparsetest.Seal((*[512]byte)(entry))
		b = append(append(b, entry[:1024]...), tarOf(t, tar.Header{Name: "after", Format: format})...)
		b = b[:min(len(b), int(cut))]
		_, _ = compare(t, b)
		compareHeaders(t, bytes.NewReader(b), bytes.NewReader(b))
	})
}

const typeOffset = 156
