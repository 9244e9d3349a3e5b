package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar/sparsetest"
)

// fuzzReadLimit is how much a fuzzed image's files may make the test read.
const fuzzReadLimit = 64 << 10

// walkAll reads all that an image shows, within limits: a small image may well
// describe large files.
func walkAll(fsys *FS) {
	left := 2000
	_ = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if left--; left < 0 {
			return fs.SkipAll
		}
		if err != nil {
			return nil
		}
		_, _ = d.Info()
		_, _ = fsys.Lstat(path)
		_, _ = fsys.Stat(path)
		_, _ = fsys.ReadLink(path)
		_, _ = fsys.Xattrs(path)
		if f, err := fsys.Open(path); err == nil {
			_, _ = io.CopyN(io.Discard, f, fuzzReadLimit)
			if r, ok := f.(*openRegular); ok {
				_, _ = observeData(r.Data)
			}
			_ = f.Close()
		}
		return nil
	})
}

// patch edits an image as the fuzzer says where and what, and returns how to
// undo it.
func patch(image, patches []byte) (undo func()) {
	type edit struct {
		at  int
		was byte
	}
	var edits []edit
	for ; len(patches) >= 3; patches = patches[3:] {
		at := (int(patches[0])<<8 | int(patches[1])) % len(image)
		edits = append(edits, edit{at, image[at]})
		image[at] = patches[2]
	}
	return func() {
		for i := len(edits) - 1; i >= 0; i-- {
			image[edits[i].at] = edits[i].was
		}
	}
}

// fuzzImage is a small image with something of everything.
func fuzzImage(t testing.TB) []byte {
	t.Helper()
	files := []file{
		{Header: tar.Header{Name: "file", PAXRecords: map[string]string{paxXattr + "user.a": "1", paxXattr + "user.b": string(make([]byte, 300))}}, body: "hello"},
		{Header: tar.Header{Name: "sym", Typeflag: tar.TypeSymlink, Linkname: "dir/../file"}},
		{Header: tar.Header{Name: "slow", Typeflag: tar.TypeSymlink, Linkname: string(bytes.Repeat([]byte("./"), 100))}},
	}
	var holes bytes.Buffer
	for range 12 {
		holes.Write(bytes.Repeat([]byte("x"), blockSize))
		holes.Write(make([]byte, blockSize))
	}
	files = append(files, file{Header: tar.Header{Name: "dir/holes"}, body: holes.String()})
	for i := range 300 {
		files = append(files, file{Header: tar.Header{Name: "tree/" + string(bytes.Repeat([]byte{'a' + byte(i%26)}, 10+i%50)) + string(rune('0'+i/26))}})
	}
	path, _, err := tryConvert(t, makeTar(t, files...), LayerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzReader changes bytes of an image: the reader must not panic or hang.
// Checksums are not verified, or nearly every change would end there.
func FuzzReader(f *testing.F) {
	image := fuzzImage(f)
	const meta = uint32(layerDataStart)
	f.Add([]byte{}, uint32(0))
	f.Add([]byte{4, 0x18, 0xFF}, uint32(0))
	f.Add([]byte{0x10, 0x20, 1}, meta)
	f.Add([]byte{0, 4, 0, 0, 5, 0}, meta+20)
	f.Fuzz(func(_ *testing.T, patches []byte, block uint32) {
		at := int(block) % (len(image) / blockSize) * blockSize
		defer patch(image[at:], patches)()
		for _, verify := range []bool{true, false} {
			if fsys, err := open(bytes.NewReader(image), int64(len(image)), verify); err == nil {
				walkAll(fsys)
			}
		}
	})
}

// TestReaderSurvivesDamage damages the fields at the begin of every block of
// metadata, one after the other.
func TestReaderSurvivesDamage(t *testing.T) {
	image := fuzzImage(t)
	work := append([]byte(nil), image...)
	starts := []int{superOffset}
	for b := layerDataStart; b < len(image)/blockSize; b++ {
		if !isZero(image[b*blockSize : (b+1)*blockSize]) {
			starts = append(starts, b*blockSize)
		}
	}
	for _, start := range append(starts, blockSize) {
		for off := start; off < start+200; off += 8 {
			for _, v := range []uint32{0, 0x7FFF0001, 0xFFFFFFFF} {
				le.PutUint32(work[off:], v)
				fsys, err := open(bytes.NewReader(work), int64(len(work)), false)
				if err != nil {
					continue
				}
				_, _ = fs.Stat(fsys, "root/slow/file")
				_, _ = fsys.Xattrs("root/file")
				if f, err := fsys.Open("root/dir/holes"); err == nil {
					_, _ = io.CopyN(io.Discard, f, fuzzReadLimit)
					_ = f.Close()
				}
				if off%200 == 0 {
					walkAll(fsys)
				}
			}
			copy(work[off:off+4], image[off:off+4])
		}
	}
}

// TestReaderFindsDamage: where there are checksums, any change to metadata that
// is read gives an error.
func TestReaderFindsDamage(t *testing.T) {
	image := fuzzImage(t)
	clean, err := open(bytes.NewReader(image), int64(len(image)), true)
	if err != nil {
		t.Fatal(err)
	}
	places := map[string]int64{"superblock": superOffset + 0x80, "group descriptor": blockSize + 0x28}
	for _, name := range []string{"root/tree", "root/dir"} {
		n, err := clean.find(name, false)
		if err != nil {
			t.Fatal(err)
		}
		r, err := clean.mapBlock(n, 0)
		if err != nil {
			t.Fatal(err)
		}
		places[name] = int64(r.physical)*blockSize + 40
	}
	n, err := clean.find("root/file", false)
	if err != nil {
		t.Fatal(err)
	}
	places["attribute block"] = int64(n.fileACL)*blockSize + 100
	n, err = clean.find("root/dir/holes", false)
	if err != nil {
		t.Fatal(err)
	}
	places["extent block"] = int64(le.Uint32(n.block[extentHeaderSize+4:]))*blockSize + 50
	for what, at := range places {
		work := append([]byte(nil), image...)
		work[at] ^= 0x10
		fsys, err := open(bytes.NewReader(work), int64(len(work)), true)
		if err == nil {
			err = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				if _, err := fsys.Xattrs(path); err != nil {
					return err
				}
				if d.Type().IsRegular() {
					_, err = fs.ReadFile(fsys, path)
				}
				return err
			})
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("a changed %s: %v", what, err)
		}
	}
}

// readEnds reads a file whole, or the ends of one that is mostly a hole.
func readEnds(fsys *FS, path string) error {
	const limit = 8 << 20 // as much as there can be data
	f, err := fsys.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r := io.NewSectionReader(f.(io.ReaderAt), 0, info.Size())
	if _, err := io.CopyN(io.Discard, r, limit); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return err
	}
	if _, err := r.Seek(-limit, io.SeekEnd); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return err
}

// FuzzTar feeds the writer anything: it gives an error, or an image that the
// reader can read whole. The seeds, which are the regular test, must also
// satisfy e2fsck.
func FuzzTar(f *testing.F) {
	seeds := [][]byte{
		nil,
		makeTar(f, file{Header: tar.Header{Name: "a/b/c"}, body: "x"}),
		makeTar(f, file{Header: tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "b"}}, file{Header: tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}}),
		makeTar(f, file{Header: tar.Header{Name: ".wh.a"}}, file{Header: tar.Header{Name: "d/.wh..wh..opq"}}, file{Header: tar.Header{Name: "a/b", PAXRecords: map[string]string{paxXattr + "user.x": "y"}}}),
		makeTar(f, file{Header: tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 5, Devminor: 300, Format: tar.FormatGNU}}),
		makeTar(f, file{Header: tar.Header{Name: "x"}, body: string(make([]byte, 9000)) + "end"}, file{Header: tar.Header{Name: "x"}, body: "again"}),
	}
	sparse := sparsetest.File{Name: "s", Size: 1 << 40, Fragments: []sparsetar.Fragment{{Offset: 5, Length: 2}, {Offset: 700, Length: 1}, {Offset: 1<<40 - 1, Length: 1}}, Data: []byte("wxyz")}
	for _, format := range sparsetest.Formats {
		seeds = append(seeds, append(sparsetest.Append(nil, format, sparse), sparsetest.End()...))
	}
	clean := map[string]bool{}
	for _, s := range seeds {
		f.Add(s)
		clean[string(s)] = true
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "image")
		out, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		w := NewLayerWriter(out, LayerOptions{MaxBytes: 8 << 20, MaxEntries: 1000, MaxMetadata: 1 << 20})
		if err := w.ReadTar(context.Background(), bytes.NewReader(b)); err != nil {
			return
		}
		stats, err := w.Finish([32]byte{})
		if err != nil {
			return
		}
		fsys, err := Open(out, stats.Size)
		if err != nil {
			t.Fatal(err)
		}
		err = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			_, err = fsys.Xattrs(path)
			if err == nil && d.Type().IsRegular() {
				err = readEnds(fsys, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if clean[string(b)] {
			fsck(t, path)
		}
	})
}
