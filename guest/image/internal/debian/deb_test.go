package debian

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// ar makes an archive of name and content pairs.
func ar(members ...string) []byte {
	b := []byte(arMagic)
	for i := 0; i < len(members); i += 2 {
		name, content := members[i], members[i+1]
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", name, 0, 0, 0, "100644", len(content), content)
		if len(content)%2 == 1 {
			b = append(b, '\n')
		}
	}
	return b
}

func tarball(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(name))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packed(t testing.TB, ext string, data []byte) string {
	t.Helper()
	var (
		b   bytes.Buffer
		w   io.WriteCloser
		err error
	)
	switch ext {
	case "":
		return string(data)
	case ".gz":
		w = gzip.NewWriter(&b)
	case ".xz":
		w, err = xz.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	}
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestData(t *testing.T) {
	for _, ext := range []string{"", ".gz", ".xz", ".zst"} {
		t.Run("data.tar"+ext, func(t *testing.T) {
			deb := ar("debian-binary", "2.0\n", "control.tar", "odd", "data.tar"+ext, packed(t, ext, tarball(t, "./a", "./b/c")))
			tr, err := Data(bytes.NewReader(deb))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"./a", "./b/c"} {
				h, err := tr.Next()
				if err != nil || h.Name != want {
					t.Fatalf("got %+v, error %v, want %s", h, err, want)
				}
				if b, err := io.ReadAll(tr); err != nil || string(b) != want {
					t.Errorf("%s: got %q, error %v", want, b, err)
				}
			}
			if _, err := tr.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("after the last file: %v", err)
			}
		})
	}
}

func TestDataRefuses(t *testing.T) {
	good := ar("debian-binary", "2.0\n", "data.tar", string(tarball(t, "./a")))
	tests := []struct {
		name string
		deb  []byte
	}{
		{"empty", nil},
		{"no archive", []byte("#!/bin/sh\necho no\n")},
		{"no data", ar("debian-binary", "2.0\n")},
		{"cut in a header", good[:30]},
		{"cut in a member", good[:len(arMagic)+arHeaderSize+2]},
		{"negative size", bytes.Replace(good, []byte("4         `"), []byte("-4        `"), 1)},
		{"damaged header", bytes.Replace(good, []byte("`\n"), []byte("xx"), 1)},
		{"unknown compression", ar("data.tar.lz", "x")},
		{"damaged compression", ar("data.tar.xz", "x")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Data(bytes.NewReader(tt.deb)); !errors.Is(err, ErrFormat) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func FuzzData(f *testing.F) {
	for _, ext := range []string{"", ".gz", ".xz", ".zst"} {
		f.Add(ar("debian-binary", "2.0\n", "data.tar"+ext, packed(f, ext, tarball(f, "./a"))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := Data(bytes.NewReader(b))
		for err == nil {
			_, err = tr.Next()
		}
	})
}

func TestPinnedPackages(t *testing.T) {
	for key, p := range pins {
		got, err := pinned(key[0], key[1])
		if err != nil || got != p {
			t.Errorf("%v: %+v, error %v", key, got, err)
		}
		if p.Arch != key[0] || len(p.SHA256) != 64 || p.Version() == "" {
			t.Errorf("%v: incomplete: %+v", key, p)
		}
	}
	if _, err := pinned("amd64", "linux-source-6.1"); err == nil {
		t.Error("a package that is not pinned was found")
	}
}
