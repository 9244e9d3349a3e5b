package ext4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// benchTar is a layer of about 100 MB: most files small, some large, as in a
// distribution's root.
func benchTar(b *testing.B) []byte {
	b.Helper()
	if path := os.Getenv("BENCH_TAR"); path != "" { // a real layer instead
		t, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		return t
	}
	var buf bytes.Buffer
	if err := writeManyFiles(&buf, 5000, 20_000); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

// benchRead measures what becomes of a tar that is hashed and read by into.
func benchRead(b *testing.B, into func(f *os.File, r io.Reader, h hash.Hash) error) {
	t := benchTar(b)
	path := filepath.Join(b.TempDir(), "out")
	b.SetBytes(int64(len(t)))
	b.ReportAllocs()
	for b.Loop() {
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		h := sha256.New()
		err = into(f, io.TeeReader(bytes.NewReader(t), h), h)
		f.Close()
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCopyFloor is the least that unpacking a layer can cost: SHA-256 and
// a copy of the tar to a file.
func BenchmarkCopyFloor(b *testing.B) {
	benchRead(b, func(f *os.File, r io.Reader, h hash.Hash) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, make([]byte, 1<<20))
		return err
	})
}

func BenchmarkLayer(b *testing.B) {
	benchRead(b, func(f *os.File, r io.Reader, h hash.Hash) error {
		w := NewLayerWriter(f, LayerOptions{})
		if err := w.ReadTar(context.Background(), r); err != nil {
			return err
		}
		_, err := w.Finish([32]byte(h.Sum(nil)))
		return err
	})
}

func BenchmarkLargeDirectory(b *testing.B) {
	var buf bytes.Buffer
	if err := writeManyFiles(&buf, 100_000, 0); err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "out")
	for b.Loop() {
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		w := NewLayerWriter(f, LayerOptions{})
		if err := w.ReadTar(context.Background(), bytes.NewReader(buf.Bytes())); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Finish([32]byte{}); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

func BenchmarkCreateEmpty(b *testing.B) {
	for _, gib := range []int64{1, 64, 1024} {
		b.Run(fmt.Sprintf("%dGiB", gib), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "out")
			for b.Loop() {
				f, err := os.Create(path)
				if err != nil {
					b.Fatal(err)
				}
				if err := CreateEmpty(f, gib<<30, EmptyOptions{UUID: [16]byte{1}}); err != nil {
					b.Fatal(err)
				}
				f.Close()
			}
		})
	}
}
