package sparsetar_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar/sparsetest"
)

// kinds are tars of one entry each, and whether Reader reads it by itself. What
// tools write every day it does; the rest is archive/tar's.
func kinds(t testing.TB) []kind {
	t.Helper()
	when := time.Unix(1700000000, 0)
	nanos := time.Unix(1700000000, 123456789)
	long := strings.Repeat("directory/", 30) + "file"
	fits := strings.Repeat("d", 90) + "/" + strings.Repeat("e", 60) + "/" + strings.Repeat("f", 99)
	written := func(name string, ordinary bool, h tar.Header) kind {
		return kind{name, entryOf(tarOf(t, h)), ordinary}
	}
	// block is a header block with other bytes at an offset, in a format's magic.
	block := func(name string, ordinary bool, format tar.Format, offset int, with string) kind {
		b := entryOf(tarOf(t, tar.Header{Name: "file", Size: 5, Mode: 0o644, Uname: "u", Gname: "g", ModTime: when, Format: format}))
		copy(b[offset:], with)
		sparsetest.Seal((*[512]byte)(b))
		return kind{name, b, ordinary}
	}
	pax := func(name string, ordinary bool, records ...string) kind {
		b := sparsetest.AppendPAX(nil, records...)
		return kind{name, append(b, entryOf(tarOf(t, tar.Header{Name: "file", Size: 5, ModTime: when, Format: tar.FormatUSTAR}))...), ordinary}
	}
	const mtime, size, uid, major, magic, trailer, checksum = 136, 124, 108, 329, 257, 508, 148
	list := []kind{
		written("ustar file", true, tar.Header{Name: "f", Size: 1234, Mode: 0o4755, Uid: 1000, Gid: 1, Uname: "root", Gname: "wheel", ModTime: when, Format: tar.FormatUSTAR}),
		written("ustar prefix", true, tar.Header{Name: fits, Format: tar.FormatUSTAR}),
		written("full name", true, tar.Header{Name: strings.Repeat("n", 100), Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("l", 100), Format: tar.FormatUSTAR}),
		written("directory", true, tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o1777, Format: tar.FormatUSTAR}),
		written("symlink", true, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "t", Format: tar.FormatUSTAR}),
		written("hard link", true, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "./t", Format: tar.FormatUSTAR}),
		written("char device", true, tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Format: tar.FormatUSTAR}),
		written("block device", true, tar.Header{Name: "b", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 17, Format: tar.FormatUSTAR}),
		written("FIFO", true, tar.Header{Name: "p", Typeflag: tar.TypeFifo, Format: tar.FormatUSTAR}),
		written("GNU file", true, tar.Header{Name: "f", Size: 600, Mode: 0o644, ModTime: when, Format: tar.FormatGNU}),
		written("GNU name of other bytes", true, tar.Header{Name: "\xff\xfe", Format: tar.FormatGNU}),
		written("GNU long name", false, tar.Header{Name: long, Format: tar.FormatGNU}),
		written("GNU times", false, tar.Header{Name: "f", AccessTime: when, ChangeTime: when, Format: tar.FormatGNU}),
		written("GNU large numbers", false, tar.Header{Name: "f", Uid: 1 << 30, Format: tar.FormatGNU}),
		written("PAX without records", true, tar.Header{Name: "f", Size: 512, ModTime: when, Format: tar.FormatPAX}),
		written("PAX long name", true, tar.Header{Name: long, Size: 3, ModTime: when, Format: tar.FormatPAX}),
		written("PAX long link", true, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: long, Format: tar.FormatPAX}),
		written("PAX name in UTF-8", true, tar.Header{Name: "ünï", Typeflag: tar.TypeDir, Format: tar.FormatPAX}),
		written("PAX times", true, tar.Header{Name: "f", Size: 1, ModTime: nanos, AccessTime: when, ChangeTime: nanos, Format: tar.FormatPAX}),
		written("PAX owners", true, tar.Header{Name: "f", Uid: 1 << 30, Gid: 1<<31 - 1, Uname: "ü", Gname: strings.Repeat("g", 40), Format: tar.FormatPAX}),
		written("PAX attributes", true, tar.Header{Name: "f", Size: 1, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00 \x00\n=", "SCHILY.xattr.user.a": "b", "APPLEVM.other": "c"}, Format: tar.FormatPAX}),
		written("PAX before the epoch", false, tar.Header{Name: "f", ModTime: time.Unix(-5, 500), Format: tar.FormatPAX}),

		pax("size", true, "size=5", "comment=c"),
		pax("twice", true, "path=a", "path=b", "mtime=1", "mtime=2.5", "SCHILY.xattr.user.a=1", "SCHILY.xattr.user.a=2"),
		pax("more digits than nanoseconds", true, "mtime=1.1234567899", "atime=0.000000001", "ctime=7."),
		pax("zeros in front", true, "uid=0007", "mtime=0008.5"),
		pax("many records", true, manyRecords(500)...),
		pax("no records", true),
		pax("no value", false, "path="),
		pax("no value later", false, "path=a", "path="),
		pax("no attribute's value", false, "SCHILY.xattr.user.a="),
		pax("a sign", false, "uid=+7"),
		pax("negative", false, "gid=-7"),
		pax("negative time", false, "mtime=-1.5"),
		pax("no number", false, "size=x"),
		pax("no number then one", false, "size=x", "size=5"),
		pax("19 digits", false, "size=0000000000000000005"),
		pax("too many digits", false, "uid=99999999999999999999"),
		pax("no time", false, "mtime=1.2.3"),
		pax("only a fraction", false, "mtime=.5"),
		pax("NUL in a path", false, "path=a\x00b"),
		pax("NUL in a key", false, "a\x00b=c"),
		pax("NUL in a value", true, "comment=a\x00b"),
		pax("no key", false, "=c"),
		pax("unknown sparse", false, "GNU.sparse.major=7"),

		block("spaces around numbers", true, tar.FormatUSTAR, uid, "   17  \x00"),
		block("no number", true, tar.FormatUSTAR, uid, "\x00\x00\x00\x00\x00\x00\x00\x00"),
		block("number to the field's end", true, tar.FormatUSTAR, uid, "00000017"),
		block("two numbers", false, tar.FormatUSTAR, uid, "1 2 \x00\x00\x00\x00"),
		block("behind a NUL", false, tar.FormatUSTAR, uid, "1\x002\x00\x00\x00\x00\x00"),
		block("digit 8", false, tar.FormatUSTAR, mtime, "00000000008\x00"),
		block("base-256", false, tar.FormatUSTAR, size, "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05"),
		block("no device number", false, tar.FormatUSTAR, major, "x"),
		block("another version", true, tar.FormatUSTAR, magic, "ustar\x00\x00\x00"),
		block("another old version", false, tar.FormatGNU, magic, "ustar 00"),
		block("star", false, tar.FormatUSTAR, trailer, "tar\x00"),
		block("V7", false, tar.FormatUSTAR, magic, "\x00\x00\x00\x00\x00\x00\x00\x00"),
		block("name in Latin-1", true, tar.FormatUSTAR, 0, "\xe4\xf6\xfc"),
		block("no type", false, tar.FormatUSTAR, 156, "\x00"),
		block("contiguous file", false, tar.FormatUSTAR, 156, "7"),
		block("unknown type", false, tar.FormatUSTAR, 156, "Z"),
	}
	signed := block("signed checksum", false, tar.FormatUSTAR, 0, "\xe4\xf6\xfc")
	copy(signed.tar[checksum:], fmt.Sprintf("%06o\x00 ", sumOf(signed.tar[:512])-3*256))
	wrong := block("wrong checksum", false, tar.FormatUSTAR, 0, "f")
	copy(wrong.tar[checksum:], "000001")
	latin := pax("PAX header with a name in Latin-1", true, "path=a")
	latin.tar[0] = 0xe4
	gnu := pax("PAX header in GNU's format", true, "path=a")
	copy(gnu.tar[magic:], "ustar  \x00")
	for _, k := range []kind{latin, gnu} {
		sparsetest.Seal((*[512]byte)(k.tar))
	}
	two := pax("two PAX headers", false, "path=a")
	two.tar = append(sparsetest.AppendPAX(nil, "mtime=7"), two.tar...)
	return append(list, signed, wrong, latin, gnu, two)
}

type kind struct {
	name     string
	tar      []byte // without the end marker
	ordinary bool
}

// entryOf takes the end marker off a tar.
func entryOf(b []byte) []byte { return b[:len(b)-len(sparsetest.End())] }

func manyRecords(n int) (records []string) {
	for i := range n {
		records = append(records, fmt.Sprintf("SCHILY.xattr.user.n%d=v", i))
	}
	return records
}

func sumOf(header []byte) (sum int) {
	for i, c := range header {
		if 148 <= i && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	return sum
}

// TestKinds: each kind of entry is read as archive/tar does, alone, twice, among
// others, and cut off anywhere.
func TestKinds(t *testing.T) {
	all := kinds(t)
	other := tarOf(t, tar.Header{Name: "other", Size: 700, Uname: "o", Format: tar.FormatUSTAR})
	for _, k := range all {
		t.Run(k.name, func(t *testing.T) {
			whole := bytes.Join([][]byte{k.tar, k.tar, entryOf(other), k.tar, sparsetest.End(), []byte("behind")}, nil)
			_, err := compare(t, whole)
			compareHeaders(t, bytes.NewReader(whole), bytes.NewReader(whole))
			compareHeaders(t, bytes.NewReader(whole), iotest.OneByteReader(bytes.NewReader(whole)))
			if errors.Is(err, io.EOF) {
				whole = bytes.Join([][]byte{entryOf(other), k.tar, entryOf(other)}, nil)
			}
			for n := range whole {
				if in := n % 512; in > 1 && in < 511 && n%101 != 0 {
					continue // the ends of blocks, and some between
				}
				_, _ = compare(t, whole[:n])
				compareHeaders(t, bytes.NewReader(whole[:n]), bytes.NewReader(whole[:n]))
				compareHeaders(t, &brokenOnce{b: whole, at: n}, &brokenOnce{b: whole, at: n})
			}
		})
	}
	var mixed []byte
	for _, k := range all {
		if _, err := compare(t, append(bytes.Clone(k.tar), sparsetest.End()...)); errors.Is(err, io.EOF) {
			mixed = append(append(mixed, k.tar...), entryOf(other)...)
		}
	}
	if n, err := compare(t, append(mixed, sparsetest.End()...)); n < len(all) || !errors.Is(err, io.EOF) {
		t.Errorf("%d entries, %v", n, err)
	}
}

var errBroken = errors.New("broken")

// brokenOnce reads b with an error after at bytes, after which it goes on.
type brokenOnce struct {
	b  []byte
	at int
}

func (r *brokenOnce) Read(p []byte) (int, error) {
	if r.at == 0 {
		r.at = len(r.b) + 1
		return 0, errBroken
	}
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b[:min(r.at, len(r.b))])
	r.b, r.at = r.b[n:], r.at-n
	return n, nil
}

// compareHeaders reads two streams of the same bytes without looking at contents,
// one with archive/tar: the same entries come, or the same error.
func compareHeaders(t testing.TB, plainSrc, sparseSrc io.Reader) {
	t.Helper()
	plain := tar.NewReader(struct{ io.Reader }{plainSrc})
	sparse := sparsetar.NewReader(struct{ io.Reader }{sparseSrc})
	for i := 0; ; i++ {
		want, wantErr := plain.Next()
		got, gotErr := sparse.Next()
		if _, isSparse := sparse.Fragments(); isSparse || gotErr != nil && strings.Contains(gotErr.Error(), "sparse") {
			return // maps are read sooner than by archive/tar
		}
		if (wantErr == nil) != (gotErr == nil) {
			t.Fatalf("entry %d: %v, archive/tar: %v", i, gotErr, wantErr)
		}
		for _, kind := range []error{io.EOF, io.ErrUnexpectedEOF, tar.ErrHeader, tar.ErrFieldTooLong, errBroken} {
			if errors.Is(gotErr, kind) != errors.Is(wantErr, kind) {
				t.Fatalf("entry %d: %v, archive/tar: %v", i, gotErr, wantErr)
			}
		}
		if wantErr != nil {
			return
		}
		if want.Typeflag != tar.TypeXGlobalHeader && !reflect.DeepEqual(got, want) {
			t.Fatalf("entry %d:\n%#v, archive/tar:\n%#v", i, got, want)
		}
		if i%2 == 1 { // some of the contents
			_, _ = plain.Read(make([]byte, 1))
			_, _ = sparse.Read(make([]byte, 1))
		}
	}
}

// TestOrdinaryEntriesCostTheirStrings: what Reader reads by itself takes no memory
// but for what the header says; archive/tar cannot do that, so it has had no part.
func TestOrdinaryEntriesCostTheirStrings(t *testing.T) {
	const n = 200
	for _, k := range kinds(t) {
		t.Run(k.name, func(t *testing.T) {
			b := append(bytes.Repeat(k.tar, n), sparsetest.End()...)
			var err error
			allocs := testing.AllocsPerRun(1, func() {
				r := sparsetar.NewReader(bytes.NewReader(b))
				for err = nil; err == nil; {
					_, err = r.Next()
				}
			}) / n
			if !errors.Is(err, io.EOF) {
				if k.ordinary {
					t.Fatal(err)
				}
				return // one error is the end
			}
			// It is two or three: the name, the link's target, and the text of PAX records.
			// archive/tar takes 13 and more. A map of many records is made anew.
			const most = 8
			if got := allocs <= most; got != k.ordinary && k.name != "many records" {
				t.Errorf("%.2f allocations for each entry", allocs)
			}
		})
	}
}

// TestLargePAXHeaders: archive/tar's limit holds.
func TestLargePAXHeaders(t *testing.T) {
	for _, tt := range []struct {
		size int
		want error
	}{{1 << 20, io.EOF}, {1<<20 + 1, tar.ErrFieldTooLong}} {
		record := "comment=" + strings.Repeat("c", tt.size-len("1048576 comment=\n"))
		b := append(sparsetest.AppendPAX(nil, record), tarOf(t, tar.Header{Name: "f", Format: tar.FormatUSTAR})...)
		if _, err := compare(t, b); !errors.Is(err, tt.want) {
			t.Errorf("%d bytes: %v, want %v", tt.size, err, tt.want)
		}
	}
}
