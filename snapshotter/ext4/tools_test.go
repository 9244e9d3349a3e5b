package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// fsck runs e2fsck on an image and fails the test on any complaint.
func fsck(t testing.TB, image string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput()
	if err != nil {
		t.Fatalf("e2fsck -fn %s: %v\n%s", image, err, tail(out))
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-4000):] }

// convert makes an image of a tar and returns its path.
func convert(t testing.TB, tarball []byte) (string, Stats) {
	t.Helper()
	path, stats, err := tryConvert(t, tarball, LayerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, path)
	return path, stats
}

func tryConvert(t testing.TB, tarball []byte, opts LayerOptions) (string, Stats, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layer.ext4")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := NewLayerWriter(f, opts)
	if err := w.ReadTar(context.Background(), bytes.NewReader(tarball)); err != nil {
		return "", Stats{}, err
	}
	stats, err := w.Finish(sha256.Sum256(tarball))
	return path, stats, err
}

// file is an entry of a test's tar.
type file struct {
	tar.Header
	body string
}

// makeTar writes entries as PAX, regular files unless they say otherwise.
func makeTar(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := f.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(f.body))
		}
		if h.Format == 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("tar entry %q: %v", h.Name, err)
		}
		if _, err := w.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// writeManyFiles writes a tar of files in directories of a thousand.
func writeManyFiles(w io.Writer, files int, size int64) error {
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i*7 + 1)
	}
	tw := tar.NewWriter(w)
	for i := range files {
		h := &tar.Header{Name: fmt.Sprintf("usr/share/d%03d/some-file-%06d.txt", i/1000, i), Mode: 0o644, Size: size, Format: tar.FormatUSTAR}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		for left := size; left > 0; {
			n, err := tw.Write(chunk[:min(left, int64(len(chunk)))])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
	}
	return tw.Close()
}
