// Package tartest makes small layers for tests.
package tartest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/ext4"
)

// Entry is one entry of a tar.
type Entry struct {
	tar.Header
	Content string
}

// NewEntry is an entry without content, of a type of package archive/tar.
func NewEntry(typ byte, name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: time.Unix(1700000000, 0)}}
}

// Dir is a directory.
func Dir(name string) Entry { return NewEntry(tar.TypeDir, name+"/", 0o755) }

// File is a regular file.
func File(name, content string) Entry {
	e := NewEntry(tar.TypeReg, name, 0o644)
	e.Content = content
	e.Size = int64(len(content))
	return e
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	e := NewEntry(tar.TypeSymlink, name, 0o777)
	e.Linkname = target
	return e
}

// Link is a hard link to a file that comes before it.
func Link(name, target string) Entry {
	e := NewEntry(tar.TypeLink, name, 0o644)
	e.Linkname = target
	return e
}

// Fifo is a named pipe.
func Fifo(name string) Entry { return NewEntry(tar.TypeFifo, name, 0o644) }

// Whiteout removes name of the layers below.
func Whiteout(name string) Entry {
	return File(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), "")
}

// Opaque hides what the layers below have in the directory name.
func Opaque(name string) Entry { return File(filepath.Join(name, ".wh..wh..opq"), "") }

// Tar returns a layer of these entries.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	b, err := TarBytes(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TarBytes is Tar for use outside of a test.
func TarBytes(entries ...Entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(e.Content)); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// Gzip compresses b.
func Gzip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Zstd compresses b.
func Zstd(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	out := w.EncodeAll(b, nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

// WriteImage writes the image of a layer to the empty file f and returns the
// layer's diffID.
func WriteImage(f *os.File, layer []byte) (digest.Digest, error) {
	w := ext4.NewLayerWriter(f, ext4.LayerOptions{Root: manifest.LayerRoot})
	if err := w.ReadTar(context.Background(), bytes.NewReader(layer)); err != nil {
		return "", err
	}
	_, err := w.Finish(sha256.Sum256(layer))
	return digest.FromBytes(layer), err
}

// OpenImage returns the file system of a layer's image.
func OpenImage(t testing.TB, layer []byte) *ext4.FS {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := WriteImage(f, layer); err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}
