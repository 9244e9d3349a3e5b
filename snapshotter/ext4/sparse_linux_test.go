package ext4

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar/sparsetest"
)

// TestSparseTars converts what GNU tar makes of a sparse file, in each of its
// formats.
func TestSparseTars(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(30) { // more pieces than a header holds
		if _, err := f.WriteAt([]byte{byte(i + 1), 2, 3}, i*3<<20+i*100); err != nil {
			t.Fatal(err)
		}
	}
	const size = 100<<20 + 7
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	want, err := sum(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()

	for name, args := range gnuTarFormats {
		t.Run(name, func(t *testing.T) {
			b := gnuTar(t, args, dir, "sparse")
			image, stats := convert(t, b)
			if stats.Used > 1<<20 {
				t.Errorf("%d bytes used", stats.Used)
			}
			if o := observeBoth(t, image)["sparse"]; o.Size != size || o.Sum != want {
				t.Errorf("size %d sum %s, want %d %s", o.Size, o.Sum, size, want)
			}
			if _, _, err := tryConvert(t, b, LayerOptions{MaxBytes: 1 << 20}); err != nil {
				t.Errorf("holes count against MaxBytes: %v", err)
			}
		})
	}
}

// gnuTarFormats are the formats of sparse files, as arguments of GNU tar.
var gnuTarFormats = map[string][]string{
	"GNU":     {"--format=gnu"},
	"PAX 0.0": {"--format=pax", "--sparse-version=0.0"},
	"PAX 0.1": {"--format=pax", "--sparse-version=0.1"},
	"PAX 1.0": {"--format=pax", "--sparse-version=1.0"},
}

func gnuTar(t testing.TB, args []string, dir, name string) []byte {
	t.Helper()
	b, err := exec.Command("tar", append(args, "-S", "-C", dir, "-c", name)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 1<<20 {
		t.Fatalf("the tar is not sparse: %d bytes", len(b))
	}
	return b
}

// TestLargestSparseFile converts a file of the largest size that ext4 knows,
// nearly all of it one hole. The file is made on a tmpfs, which has no such
// limit, so that GNU tar writes the tars on any host.
func TestLargestSparseFile(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	f, err := os.Create(filepath.Join(dir, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(maxFileSize); err != nil {
		t.Fatal(err)
	}
	// Two pieces share a block, one lies across the 32nd bit of the size, one is
	// the end.
	pieces := []int64{0, 2000, 5<<20 + 1, 1<<32 - 2, 1<<43 + 17, maxFileSize - blockSize, maxFileSize - 7}
	for _, off := range pieces {
		if _, err := f.WriteAt([]byte("a piece"), off); err != nil {
			t.Fatal(err)
		}
	}
	// check reads the pieces and what is around them.
	check := func(t *testing.T, who string, r io.ReaderAt, size int64) {
		t.Helper()
		if size != maxFileSize {
			t.Errorf("%s: %d bytes, want %d", who, size, int64(maxFileSize))
		}
		for _, off := range append(pieces, 1<<33, 1<<42) {
			off = min(max(0, off-3000), maxFileSize-9000)
			got, want := make([]byte, 9000), make([]byte, 9000)
			if _, err := f.ReadAt(want, off); err != nil {
				t.Fatal(err)
			}
			if _, err := r.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: the data at %d differs (%v)", who, off, err)
			}
		}
	}
	for name, args := range gnuTarFormats {
		t.Run(name, func(t *testing.T) {
			b := gnuTar(t, args, dir, "huge")
			start := time.Now()
			image, stats, err := tryConvert(t, b, LayerOptions{MaxBytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("the conversion took %v", d)
			}
			if stats.Used > 1<<20 {
				t.Errorf("%d bytes used", stats.Used)
			}
			fsck(t, image)

			k, err := os.Open(filepath.Join(mount(t, image, "ro"), DefaultRoot, "huge"))
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			st, err := k.Stat()
			if err != nil {
				t.Fatal(err)
			}
			check(t, "kernel", k, st.Size())

			o, err := openImage(t, image).Open(DefaultRoot + "/huge")
			if err != nil {
				t.Fatal(err)
			}
			if st, err = o.Stat(); err != nil {
				t.Fatal(err)
			}
			check(t, "reader", o.(io.ReaderAt), st.Size())
		})
	}
}

// TestRandomSparseFiles: whatever the map, a file has the contents that
// archive/tar shows.
func TestRandomSparseFiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var b []byte
	// add appends a file of size with fragments that are about so far apart and
	// so long.
	add := func(size, gap, length int64, align int64) {
		f := sparsetest.File{Name: fmt.Sprintf("f%04d", len(b)/512), Size: size}
		for at := int64(0); ; {
			at += rng.Int64N(2) * rng.Int64N(gap) / align * align
			n := min(rng.Int64N(length)/align*align, size-at)
			if at >= size || len(f.Fragments) > 5000 {
				break
			}
			f.Fragments = append(f.Fragments, sparsetar.Fragment{Offset: at, Length: n})
			for range n {
				f.Data = append(f.Data, byte(rng.IntN(256)))
			}
			if rng.IntN(5) == 0 { // zeros in the data
				clear(f.Data[max(0, len(f.Data)-3*blockSize):])
			}
			at += n
		}
		b = sparsetest.Append(b, sparsetest.Formats[rng.IntN(len(sparsetest.Formats))], f)
	}
	for range 30 {
		for _, align := range []int64{1, 512, blockSize} {
			add(rng.Int64N(4<<20), 200_000, 40_000, align)
			add(rng.Int64N(60_000), 6000, 6000, align) // about one fragment for each block
		}
		add(rng.Int64N(20_000), 100, 100, 1) // many in each block
		add(rng.Int64N(3)*blockSize, 9000, 9000, 1)
		add(0, 1, 1, 1)
	}
	add(40<<20, 9000, 6000, 1)                                                                  // a deep extent tree
	b = sparsetest.Append(b, "PAX 1.0", sparsetest.File{Name: "only a hole", Size: 3<<20 + 11}) // no fragments
	b = append(b, sparsetest.End()...)

	image, _ := convert(t, b)
	got := observeBoth(t, image)
	tr := tar.NewReader(bytes.NewReader(b))
	n := 0
	for ; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		want, err := sum(tr)
		if err != nil {
			t.Fatal(err)
		}
		if o := got[h.Name]; o.Size != h.Size || o.Sum != want {
			t.Errorf("%s: size %d sum %s, want %d %s", h.Name, o.Size, o.Sum, h.Size, want)
		}
	}
	if n != len(got)-1 {
		t.Errorf("%d files, want %d", len(got)-1, n)
	}
}

// TestSparseBlocks: a fragment takes the blocks that it touches, and blocks of
// zeros none.
func TestSparseBlocks(t *testing.T) {
	block := strings.Repeat("d", blockSize)
	zero := strings.Repeat("\x00", blockSize)
	tests := []struct {
		name      string
		fragments []sparsetar.Fragment
		data      string
		blocks    int64
	}{
		{"none", nil, "", 0},
		{"a byte", []sparsetar.Fragment{{Offset: 5000, Length: 1}}, "x", 1},
		{"across a border", []sparsetar.Fragment{{Offset: 8190, Length: 4}}, "wxyz", 2},
		{"two in a block", []sparsetar.Fragment{{Offset: 1, Length: 1}, {Offset: 4000, Length: 1}}, "xy", 1},
		{"three that chain blocks", []sparsetar.Fragment{{Offset: 10, Length: 5000}, {Offset: 6000, Length: 4000}, {Offset: 12000, Length: 200}}, strings.Repeat("x", 9200), 3},
		{"zeros", []sparsetar.Fragment{{Offset: 0, Length: 3 * blockSize}}, zero + block + zero, 1},
		{"zeros in parts of blocks", []sparsetar.Fragment{{Offset: 100, Length: 50}, {Offset: 3000, Length: 2000}}, strings.Repeat("\x00", 2050), 0},
		{"the end", []sparsetar.Fragment{{Offset: 1<<30 - 1, Length: 1}}, "x", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := sparsetest.Append(nil, "PAX 1.0", sparsetest.File{Name: "f", Size: 1 << 30, Fragments: tt.fragments, Data: []byte(tt.data)})
			image, _ := convert(t, append(b, sparsetest.End()...))
			info, err := openImage(t, image).Lstat(DefaultRoot + "/f")
			if err != nil {
				t.Fatal(err)
			}
			if n := info.Sys().(*Stat).Blocks / sectorsPerBlk; n != tt.blocks {
				t.Errorf("%d blocks, want %d", n, tt.blocks)
			}
		})
	}
}

func TestSparseLimits(t *testing.T) {
	var apart []sparsetar.Fragment // a block for each byte
	for i := range int64(1000) {
		apart = append(apart, sparsetar.Fragment{Offset: i * 100_000, Length: 1})
	}
	bytesApart := sparsetest.File{Name: "f", Size: 1 << 30, Fragments: apart, Data: bytes.Repeat([]byte("x"), len(apart))}
	tests := []struct {
		name string
		file sparsetest.File
		opts LayerOptions
		want string
		is   error
	}{
		{"larger than ext4 allows", sparsetest.File{Name: "f", Size: maxFileSize + 1}, LayerOptions{}, "larger than ext4's limit", errdefs.ErrInvalidArgument},
		{"largest int64", sparsetest.File{Name: "f", Size: math.MaxInt64}, LayerOptions{}, "larger than ext4's limit", errdefs.ErrInvalidArgument},
		{"damaged map", sparsetest.File{Name: "f", Size: 1, Fragments: apart[:2]}, LayerOptions{}, "damaged", errdefs.ErrInvalidArgument},
		{"blocks for bytes", bytesApart, LayerOptions{MaxBytes: 1 << 20}, "MaxBytes", errdefs.ErrResourceExhausted},
		{"many fragments", bytesApart, LayerOptions{MaxMetadata: 10_000}, "MaxMetadata", errdefs.ErrResourceExhausted},
		{"enough for blocks and fragments", bytesApart, LayerOptions{MaxBytes: 6 << 20, MaxMetadata: 13_000}, "", nil},
		{"data", sparsetest.File{Name: "f", Size: 1 << 30, Fragments: []sparsetar.Fragment{{Offset: 1, Length: 2 << 20}}, Data: make([]byte, 2<<20)}, LayerOptions{MaxBytes: 1 << 20}, "MaxBytes", errdefs.ErrResourceExhausted},
	}
	for _, tt := range tests {
		for _, format := range sparsetest.Formats {
			t.Run(tt.name+"/"+format, func(t *testing.T) {
				b := append(sparsetest.Append(nil, format, tt.file), sparsetest.End()...)
				_, _, err := tryConvert(t, b, tt.opts)
				if !errors.Is(err, tt.is) || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q and %v", err, tt.want, tt.is)
				}
			})
		}
	}
}
