package sparsetar_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar/sparsetest"
)

type fragments = []sparsetar.Fragment

// eachFormat runs a test for every format of sparse files.
func eachFormat(t *testing.T, test func(t *testing.T, format string)) {
	for _, format := range sparsetest.Formats {
		t.Run(format, func(t *testing.T) { test(t, format) })
	}
}

func TestFragments(t *testing.T) {
	var many, manyJoined fragments
	for i := range int64(100) {
		many = append(many, sparsetar.Fragment{Offset: i * 10, Length: 2})
	}
	for i := range int64(100) {
		manyJoined = append(manyJoined, sparsetar.Fragment{Offset: i, Length: 1})
	}
	tests := []struct {
		name     string
		size     int64
		in, want fragments
	}{
		{"none", 1000, nil, fragments{}},
		{"nothing at all", 0, nil, fragments{}},
		{"one", 1000, fragments{{3, 5}}, fragments{{3, 5}}},
		{"no hole", 5, fragments{{0, 5}}, fragments{{0, 5}}},
		{"empty ones", 1000, fragments{{0, 0}, {3, 5}, {8, 0}, {100, 0}, {1000, 0}}, fragments{{3, 5}}},
		{"an empty one at the next", 1000, fragments{{3, 5}, {100, 0}, {100, 7}}, fragments{{3, 5}, {100, 7}}},
		{"touching", 1000, fragments{{3, 5}, {8, 1}, {9, 0}, {9, 2}, {12, 1}}, fragments{{3, 8}, {12, 1}}},
		{"many", 1000, many, many},
		{"many that touch", 1000, manyJoined, fragments{{0, 100}}},
		{"16 TiB", 1 << 44, fragments{{1 << 43, 1}, {1<<44 - 1, 1}}, fragments{{1 << 43, 1}, {1<<44 - 1, 1}}},
		{"largest", math.MaxInt64, fragments{{math.MaxInt64 - 1, 1}}, fragments{{math.MaxInt64 - 1, 1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachFormat(t, func(t *testing.T, format string) {
				data := dataFor(tt.in)
				b := sparsetest.Append(nil, format, sparsetest.File{Name: "dir/file", Size: tt.size, Fragments: tt.in, Data: data})
				b = append(sparsetest.Append(b, format, sparsetest.File{Name: "after", Size: 7}), sparsetest.End()...)
				r := sparsetar.NewReader(bytes.NewReader(b))
				h, err := r.Next()
				if err != nil {
					t.Fatal(err)
				}
				if h.Name != "dir/file" || h.Size != tt.size {
					t.Errorf("%q of %d bytes, want %d", h.Name, h.Size, tt.size)
				}
				if got, sparse := r.Fragments(); !sparse || !slices.Equal(got, tt.want) {
					t.Errorf("got %v (sparse: %v), want %v", got, sparse, tt.want)
				}
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
					t.Errorf("read %d bytes (%v), want %d", len(got), err, len(data))
				}
				if h, err := r.Next(); err != nil || h.Name != "after" {
					t.Errorf("the next entry: %v, %v", h, err)
				}
				if _, err := compare(t, b); !errors.Is(err, io.EOF) && tt.size <= readLimit {
					t.Error(err)
				}
			})
		})
	}
}

// dataFor makes data for fragments.
func dataFor(list fragments) []byte {
	var b []byte
	for _, f := range list {
		for i := range f.Length {
			b = append(b, byte(f.Offset+i*7+1))
		}
	}
	return b
}

func TestHostileMaps(t *testing.T) {
	tests := []struct {
		name string
		size int64
		list fragments
		data string
		want string // in the error
	}{
		{"negative offset", 100, fragments{{-1, 1}}, "x", "data of 1 bytes at -1"},
		{"negative length", 100, fragments{{5, -1}, {5, 1}}, "", "data of -1 bytes"},
		{"negative size", -1, nil, "", "size of -1"},
		{"overflow", math.MaxInt64, fragments{{math.MaxInt64, 1}}, "x", "data of 1 bytes at 9223372036854775807"},
		{"beyond the end", 100, fragments{{99, 2}}, "xx", "in a file of 100"},
		{"empty beyond the end", 100, fragments{{101, 0}}, "", "in a file of 100"},
		{"out of order", 100, fragments{{50, 1}, {10, 1}}, "xx", "follows data to 51"},
		{"overlap", 100, fragments{{50, 2}, {51, 2}}, "xxxx", "follows data to 52"},
		{"too little data", 100, fragments{{50, 20}}, "x", "20 bytes of data for 1 bytes"},
		{"too much data", 100, fragments{{50, 2}}, "xxx", "2 bytes of data for 3 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eachFormat(t, func(t *testing.T, format string) {
				b := sparsetest.Append(nil, format, sparsetest.File{Name: "file", Size: tt.size, Fragments: tt.list, Data: []byte(tt.data)})
				_, err := sparsetar.NewReader(bytes.NewReader(b)).Next()
				if !errors.Is(err, tar.ErrHeader) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				if tt.size <= readLimit {
					_, _ = compare(t, b)
				}
			})
		})
	}
}

// contents is an entry with these PAX records and contents.
func contents(body string, records ...string) []byte {
	b := sparsetest.AppendPAX(nil, records...)
	f := sparsetest.Append(nil, "PAX 0.1", sparsetest.File{Data: []byte(body)})
	return append(b, f[bytes.Index(f, []byte("GNUSparseFile")):]...)
}

func TestDamagedRecords(t *testing.T) {
	v10 := []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=9"}
	tests := []struct {
		name string
		b    []byte
		want error
	}{
		{"numblocks", contents("", "GNU.sparse.map=0,0", "GNU.sparse.numblocks=2"), tar.ErrHeader},
		{"numblocks missing", contents("", "GNU.sparse.map=0,0"), tar.ErrHeader},
		{"numblocks negative", contents("", "GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=-1"), tar.ErrHeader},
		{"odd map", contents("", "GNU.sparse.map=0,0,0", "GNU.sparse.numblocks=1"), tar.ErrHeader},
		{"no number", contents("", "GNU.sparse.map=0,x", "GNU.sparse.numblocks=1"), tar.ErrHeader},
		{"size", contents("", "GNU.sparse.map=0,0", "GNU.sparse.numblocks=1", "GNU.sparse.size=x"), tar.ErrHeader},
		{"offsets alone", contents("", "GNU.sparse.offset=0", "GNU.sparse.offset=1"), tar.ErrHeader},
		{"numbytes first", contents("", "GNU.sparse.numbytes=0"), tar.ErrHeader},
		{"comma in a number", contents("", "GNU.sparse.offset=0,0"), tar.ErrHeader},
		{"no lines", contents("12345", v10...), io.ErrUnexpectedEOF},
		{"lines without an end", contents(strings.Repeat("1", 2<<20), v10...), tar.ErrHeader},
		{"zeros without an end", contents("9000000\n"+strings.Repeat("0\n", 1<<20), v10...), tar.ErrHeader},
		{"negative count", contents("-1\n"+strings.Repeat("\x00", 509), v10...), tar.ErrHeader},
		{"large count", contents("9223372036854775807\n"+strings.Repeat("\x00", 492), v10...), io.ErrUnexpectedEOF},
		{"no count", contents("\n"+strings.Repeat("\x00", 511), v10...), tar.ErrHeader},
		{"no offset", contents("1\nx\n1\n"+strings.Repeat("\x00", 506), v10...), tar.ErrHeader},
		{"long PAX header", contents("", "GNU.sparse.map="+strings.Repeat("0,", 1<<19)+"0", "GNU.sparse.numblocks=1"), tar.ErrFieldTooLong},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := sparsetar.NewReader(bytes.NewReader(tt.b)).Next(); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			_, _ = compare(t, tt.b)
		})
	}
}

// TestExtensionsWithoutEnd: an old GNU header's extension blocks are bounded as
// in archive/tar.
func TestExtensionsWithoutEnd(t *testing.T) {
	list := make(fragments, 4+21*2047)
	for _, n := range []int{len(list), len(list) + 1} {
		b := sparsetest.Append(nil, "GNU", sparsetest.File{Name: "f", Fragments: make(fragments, n)})
		b = append(b, sparsetest.End()...)
		_, err := compare(t, b)
		if n > len(list) && !errors.Is(err, tar.ErrHeader) || n == len(list) && !errors.Is(err, io.EOF) {
			t.Errorf("%d fragments: %v", n, err)
		}
	}
}

func TestTruncatedSparseFiles(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		var list fragments
		for i := range int64(60) {
			list = append(list, sparsetar.Fragment{Offset: i * 100, Length: 10})
		}
		b := sparsetest.Append(nil, format, sparsetest.File{Name: "f", Size: 6000, Fragments: list, Data: dataFor(list)})
		for n := range len(b) {
			_, _ = compare(t, b[:n])
		}
	})
}

// TestHeadersThatAreNotOfTheirEntry: what precedes a header belongs to it alone,
// as archive/tar sees it.
func TestHeadersThatAreNotOfTheirEntry(t *testing.T) {
	sparse := func(format string) []byte {
		return sparsetest.Append(nil, format, sparsetest.File{Name: "s", Size: 5000, Fragments: fragments{{100, 3}}, Data: []byte("abc")})
	}
	v01 := sparse("PAX 0.1")
	paxHeader, paxFile := v01[:1024], v01[1024:]
	unknown := contents("abc", "GNU.sparse.major=2", "GNU.sparse.minor=0", "GNU.sparse.map=1,2")
	global := bytes.Clone(sparsetest.AppendPAX(nil, "GNU.sparse.map=1,2", "comment=c"))
	global[156] = tar.TypeXGlobalHeader
	plain := tarOf(t, tar.Header{Name: "plain", Format: tar.FormatUSTAR})
	plain = plain[:len(plain)-1024]
	long := tarOf(t, tar.Header{Name: strings.Repeat("long", 100), Format: tar.FormatGNU})
	long = long[:len(long)-1024-512]
	typed := func(typ byte, name string) []byte {
		b := bytes.Clone(paxFile)
		b[156] = typ
		copy(b, append([]byte(name), 0))
		return b
	}
	tests := []struct {
		name    string
		parts   [][]byte
		entries int
		end     error
	}{
		{"then plain", [][]byte{v01, plain}, 2, io.EOF},
		{"replaced by another PAX header", [][]byte{paxHeader, sparsetest.AppendPAX(nil, "comment=c"), plain}, 1, io.EOF},
		{"a global header between", [][]byte{paxHeader, global, plain, v01}, 3, io.EOF},
		{"a long name between", [][]byte{paxHeader, long, paxFile}, 1, io.EOF},
		{"a long name before", [][]byte{long, v01}, 1, io.EOF},
		{"before an old GNU header", [][]byte{paxHeader, sparse("GNU")}, 1, io.EOF},
		{"unknown version", [][]byte{unknown, plain}, 2, io.EOF},
		{"unknown version before an old GNU header", [][]byte{unknown[:1024], sparse("GNU"), plain}, 2, io.EOF},
		{"PAX header at the end", [][]byte{plain, paxHeader}, 1, io.EOF},
		{"of a directory", [][]byte{paxHeader, typed(tar.TypeDir, "d")}, 0, tar.ErrHeader},
		{"of a link", [][]byte{paxHeader, typed(tar.TypeLink, "l")}, 0, tar.ErrHeader},
		{"of a directory without a type", [][]byte{paxHeader, typed(0, "d/")}, 0, tar.ErrHeader},
		{"of a file without a type", [][]byte{paxHeader, typed(0, "f")}, 1, io.EOF},
		{"of an unknown type", [][]byte{paxHeader, typed('Z', "f")}, 1, io.EOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := bytes.Join(append(slices.Clone(tt.parts), sparsetest.End(), []byte("behind")), nil)
			seal(b, sparsetest.Seal)
			if n, err := compare(t, b); n != tt.entries || !errors.Is(err, tt.end) {
				t.Errorf("%d entries, then %v; want %d, %v", n, err, tt.entries, tt.end)
			}
		})
	}
}

func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestRandomTars mixes plain and sparse entries.
func TestRandomTars(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		var b []byte
		n := 1 + rng.IntN(8)
		for i := range n {
			if rng.IntN(3) == 0 {
				h := tar.Header{Name: strings.Repeat("n", 1+rng.IntN(200)), Size: rng.Int64N(3000), Format: []tar.Format{tar.FormatPAX, tar.FormatGNU}[rng.IntN(2)]}
				one := tarOf(t, h)
				b = append(b, one[:len(one)-1024]...)
				continue
			}
			var list fragments
			at := int64(0)
			for range rng.IntN(60) {
				at += rng.Int64N(3) * rng.Int64N(2000)
				f := sparsetar.Fragment{Offset: at, Length: rng.Int64N(3) * rng.Int64N(1000)}
				list = append(list, f)
				at = f.End()
			}
			b = sparsetest.Append(b, sparsetest.Formats[rng.IntN(4)], sparsetest.File{Name: fmt.Sprint("f", i), Size: at + rng.Int64N(5000), Fragments: list, Data: dataFor(list)})
		}
		b = append(append(b, sparsetest.End()...), make([]byte, rng.IntN(3000))...)
		if got, err := compare(t, b); got != n || !errors.Is(err, io.EOF) {
			t.Fatalf("%d of %d entries: %v", got, n, err)
		}
	}
}

// TestErrorsOfTheStream: an error of the source comes out as it is.
func TestErrorsOfTheStream(t *testing.T) {
	broken := errors.New("broken")
	eachFormat(t, func(t *testing.T, format string) {
		b := sparsetest.Append(nil, format, sparsetest.File{Name: "f", Size: 9, Fragments: fragments{{4, 3}}, Data: []byte("abc")})
		for n := range len(b) - 512 {
			r := sparsetar.NewReader(io.MultiReader(bytes.NewReader(b[:n]), errorReader{broken}))
			_, err := r.Next()
			if err == nil {
				_, err = io.ReadAll(r)
			}
			if !errors.Is(err, broken) {
				t.Fatalf("after %d bytes: %v", n, err)
			}
		}
	})
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// BenchmarkNext compares what an ordinary entry costs here and in archive/tar.
func BenchmarkNext(b *testing.B) {
	headers := make([]tar.Header, 1000)
	for i := range headers {
		headers[i] = tar.Header{Name: fmt.Sprint("some/where/file", i), Size: 600, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			b.Fatal(err)
		}
	}
	type nexter interface{ Next() (*tar.Header, error) }
	for name, open := range map[string]func(io.Reader) nexter{
		"archive_tar": func(r io.Reader) nexter { return tar.NewReader(r) },
		"sparsetar":   func(r io.Reader) nexter { return sparsetar.NewReader(r) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := open(struct{ io.Reader }{bytes.NewReader(buf.Bytes())})
				for {
					if _, err := r.Next(); err != nil {
						break
					}
				}
			}
		})
	}
}
