package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestHostileTarsAreRefused(t *testing.T) {
	header := func(h tar.Header) []byte { return makeTar(t, file{Header: h}) }
	chained := []file{
		{Header: tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "b"}},
		{Header: tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}},
	}
	sym := file{Header: tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "/etc"}}
	xattr := func(kv ...string) []byte {
		h := tar.Header{Name: "x", PAXRecords: map[string]string{}}
		for i := 0; i < len(kv); i += 2 {
			h.PAXRecords[paxXattr+kv[i]] = kv[i+1]
		}
		return header(h)
	}
	whole := makeTar(t, file{Header: tar.Header{Name: "f"}, body: strings.Repeat("x", 100000)})
	badSum := append([]byte(nil), whole...)
	badSum[1] ^= 1
	// The size in the header is larger than the stream.
	lying := makeTar(t, file{Header: tar.Header{Name: "f"}, body: strings.Repeat("x", 100000)})[:512+4096]

	tests := []struct {
		name string
		tar  []byte
		opts LayerOptions
		want string
		is   error
	}{
		{"parent escape", header(tar.Header{Name: "../x"}), LayerOptions{}, `".."`, errdefs.ErrInvalidArgument},
		{"escape inside", header(tar.Header{Name: "a/../../x"}), LayerOptions{}, `".."`, errdefs.ErrInvalidArgument},
		{"link escape", header(tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}), LayerOptions{}, `".."`, errdefs.ErrInvalidArgument},
		{"parent is a symlink", makeTar(t, sym, file{Header: tar.Header{Name: "s/passwd"}}), LayerOptions{}, `"s" is a symlink`, errdefs.ErrInvalidArgument},
		{"parent is a file", makeTar(t, file{Header: tar.Header{Name: "f"}}, file{Header: tar.Header{Name: "f/x"}}), LayerOptions{}, "not a directory", errdefs.ErrInvalidArgument},
		{"link through a symlink", makeTar(t, sym, file{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "s/passwd"}}), LayerOptions{}, "not in the layer", errdefs.ErrInvalidArgument},
		{"link to a directory", makeTar(t, file{Header: tar.Header{Name: "d/", Typeflag: tar.TypeDir}}, file{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "d"}}), LayerOptions{}, "directory", errdefs.ErrInvalidArgument},
		{"link to a later directory", makeTar(t, file{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "d"}}, file{Header: tar.Header{Name: "d/", Typeflag: tar.TypeDir}}), LayerOptions{}, "directory", errdefs.ErrInvalidArgument},
		{"link to nothing", header(tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "y"}), LayerOptions{}, `"y" is not in the layer`, errdefs.ErrInvalidArgument},
		{"links in a circle", makeTar(t, chained...), LayerOptions{}, "", errdefs.ErrInvalidArgument},
		{"root is a file", header(tar.Header{Name: "."}), LayerOptions{}, "root is not a directory", errdefs.ErrInvalidArgument},
		{"whiteout with entries", header(tar.Header{Name: ".wh.x/y"}), LayerOptions{}, "whiteout", errdefs.ErrInvalidArgument},
		{"whiteout of nothing", header(tar.Header{Name: ".wh."}), LayerOptions{}, "whiteout", errdefs.ErrInvalidArgument},
		{"whiteout of the parent", header(tar.Header{Name: "a/.wh..."}), LayerOptions{}, "whiteout", errdefs.ErrInvalidArgument},
		{"long name", header(tar.Header{Name: strings.Repeat("n", 256)}), LayerOptions{}, "256 bytes", errdefs.ErrInvalidArgument},
		{"long path", header(tar.Header{Name: strings.Repeat("n/", 2100) + "x"}), LayerOptions{}, "longer than 4095", errdefs.ErrInvalidArgument},
		{"long symlink", header(tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x", 4096)}), LayerOptions{}, "4096 bytes", errdefs.ErrInvalidArgument},
		{"empty symlink", header(tar.Header{Name: "x", Typeflag: tar.TypeSymlink}), LayerOptions{}, "without a target", errdefs.ErrInvalidArgument},
		{"unknown type", header(tar.Header{Name: "x", Typeflag: 'Z', Format: tar.FormatUSTAR}), LayerOptions{}, "'Z'", errdefs.ErrInvalidArgument},
		{"device number", header(tar.Header{Name: "x", Typeflag: tar.TypeChar, Devmajor: 4096, Format: tar.FormatGNU}), LayerOptions{}, "4096:0", errdefs.ErrInvalidArgument},
		{"owner", header(tar.Header{Name: "x", Uid: 1<<32 - 1}), LayerOptions{}, "owner", errdefs.ErrInvalidArgument},
		{"large attribute", xattr("user.x", strings.Repeat("v", 4090)), LayerOptions{}, "user.x", errdefs.ErrInvalidArgument},
		{"attributes of more than a block", xattr("user.x", strings.Repeat("v", 2500), "user.y", strings.Repeat("v", 2500)), LayerOptions{}, "user.y", errdefs.ErrInvalidArgument},
		{"attribute without a name", xattr("user.", "v"), LayerOptions{}, "name", errdefs.ErrInvalidArgument},
		{"ACL of odd length", xattr("system.posix_acl_access", "\x02\x00\x00\x00x"), LayerOptions{}, "ACL", errdefs.ErrInvalidArgument},
		{"ACL version", xattr("system.posix_acl_access", "\x01\x00\x00\x00"), LayerOptions{}, "version 1", errdefs.ErrInvalidArgument},
		{"not a tar", bytes.Repeat([]byte("junk"), 1000), LayerOptions{}, "damaged", errdefs.ErrInvalidArgument},
		{"header checksum", badSum, LayerOptions{}, "damaged", errdefs.ErrInvalidArgument},
		{"truncated contents", lying, LayerOptions{}, "truncated", errdefs.ErrInvalidArgument},
		{"truncated header", whole[:300], LayerOptions{}, "truncated", errdefs.ErrInvalidArgument},
		{"bomb", whole, LayerOptions{MaxBytes: 50000}, "MaxBytes", errdefs.ErrResourceExhausted},
		{"bytes after the end", append(append([]byte(nil), whole...), make([]byte, 500000)...), LayerOptions{MaxBytes: 400000}, "MaxBytes", errdefs.ErrResourceExhausted},
		{"too many entries", makeTar(t, file{Header: tar.Header{Name: "a/b/c/d"}}), LayerOptions{MaxEntries: 3}, "MaxEntries", errdefs.ErrResourceExhausted},
		{"too much metadata", header(tar.Header{Name: strings.Repeat("n", 200)}), LayerOptions{MaxMetadata: 100}, "MaxMetadata", errdefs.ErrResourceExhausted},
		{"root of two names", nil, LayerOptions{Root: "a/b"}, `"a/b"`, errdefs.ErrInvalidArgument},
		{"root in the way", nil, LayerOptions{Root: "lost+found"}, "lost+found", errdefs.ErrInvalidArgument},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := tryConvert(t, tt.tar, tt.opts)
			if err == nil {
				t.Fatal("no error")
			}
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want %q and %v", err, tt.want, tt.is)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
		})
	}
}

func TestHardLinkLimit(t *testing.T) {
	files := []file{{Header: tar.Header{Name: "f", Format: tar.FormatUSTAR}}}
	for i := range maxLinks {
		files = append(files, file{Header: tar.Header{Name: fmt.Sprint("l", i), Typeflag: tar.TypeLink, Linkname: "f", Format: tar.FormatUSTAR}})
	}
	convert(t, makeTar(t, files[:maxLinks]...))
	if _, _, err := tryConvert(t, makeTar(t, files...), LayerOptions{}); err == nil || !strings.Contains(err.Error(), "hard links") {
		t.Errorf("one link too many: %v", err)
	}
}

func TestLayerNeedsAnEmptyFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	w := NewLayerWriter(f, LayerOptions{})
	if err := w.ReadTar(context.Background(), bytes.NewReader(nil)); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("got %v", err)
	}
	if _, err := w.Finish([32]byte{}); err == nil {
		t.Error("Finish after an error succeeded")
	}
}

func TestLayerStopsWhenCancelled(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	go func() {
		b := makeTar(t, file{Header: tar.Header{Name: "f"}, body: strings.Repeat("x", 4<<20)})
		_, _ = w.Write(b[:3<<20])
		cancel()
		_, _ = w.Write(b[3<<20:])
		_ = w.Close()
	}()
	err = NewLayerWriter(f, LayerOptions{}).ReadTar(ctx, r)
	_ = r.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestSameTarGivesSameBytes(t *testing.T) {
	var files []file
	for i := range 3000 {
		files = append(files, file{
			Header: tar.Header{Name: fmt.Sprintf("d%d/f%d", i%7, i), PAXRecords: map[string]string{
				paxXattr + "user.a": "1", paxXattr + "user.b": "2", paxXattr + "user.c": strings.Repeat("3", 200),
			}},
			body: fmt.Sprint(i),
		})
	}
	b := makeTar(t, files...)
	var sums [2][32]byte
	for i := range sums {
		image, _ := convert(t, b)
		raw, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(raw)
	}
	if sums[0] != sums[1] {
		t.Error("two conversions of one tar differ")
	}
}

// TestReadTarReadsToTheEnd: the caller's hash must cover what follows the end
// marker.
func TestReadTarReadsToTheEnd(t *testing.T) {
	b := append(makeTar(t, file{Header: tar.Header{Name: "f"}, body: "x"}), make([]byte, 20000)...)
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bytes.NewReader(b)
	if err := NewLayerWriter(f, LayerOptions{}).ReadTar(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	if r.Len() != 0 {
		t.Errorf("%d bytes left unread", r.Len())
	}
}
