package main

import (
	"archive/tar"
	"bytes"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// entry is one entry of a test's tar.
type entry struct {
	tar.Header
	content string
}

func header(typ byte, name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: time.Unix(1700000000, 0)}}
}

func dir(name string) entry { return header(tar.TypeDir, name+"/", 0o755) }

func file(name, content string) entry {
	e := header(tar.TypeReg, name, 0o644)
	e.content, e.Size = content, int64(len(content))
	return e
}

// makeTar returns a layer of these entries.
func makeTar(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compressGzip(t *testing.T, b []byte) []byte {
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

func compressZstd(t *testing.T, b []byte) []byte {
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
