package bzimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

var kernel = append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel code "), 1000)...)

// bzImage makes a file as the kernel's build does: boot sector, setup code, head
// code, payload with its size appended, and a tail.
func bzImage(payload []byte, setupSects byte, size int) []byte {
	le := binary.LittleEndian
	const head = 100
	sects := int(setupSects)
	if sects == 0 {
		sects = 4
	}
	b := make([]byte, (sects+1)*512+head)
	b[offSetupSects] = setupSects
	copy(b[offHeader:], headerMagic)
	le.PutUint16(b[offVersion:], 0x20f)
	le.PutUint32(b[offPayloadOffset:], head)
	if size >= 0 {
		payload = le.AppendUint32(bytes.Clone(payload), uint32(size))
	}
	le.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	return append(append(b, payload...), "tail"...)
}

func pack(t testing.TB, open func(io.Writer) (io.WriteCloser, error), data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := open(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func lz4Legacy(w io.Writer) (io.WriteCloser, error) {
	z := lz4.NewWriter(w)
	return z, z.Apply(lz4.LegacyOption(true))
}

func gz(w io.Writer) (io.WriteCloser, error)    { return gzip.NewWriter(w), nil }
func zstdw(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }

func TestVmlinux(t *testing.T) {
	tests := []struct {
		name  string
		image []byte
	}{
		{"lz4", bzImage(pack(t, lz4Legacy, kernel), 27, len(kernel))},
		{"zstd", bzImage(pack(t, zstdw, kernel), 27, len(kernel))},
		{"gzip, whose trailer is the size", bzImage(pack(t, gz, kernel), 27, -1)},
		{"no number of setup sectors means four", bzImage(pack(t, lz4Legacy, kernel), 0, len(kernel))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Vmlinux(tt.image)
			if err != nil || !bytes.Equal(got, kernel) {
				t.Errorf("got %d bytes, error %v", len(got), err)
			}
		})
	}
}

func TestVmlinuxRefuses(t *testing.T) {
	good := func() []byte { return bzImage(pack(t, lz4Legacy, kernel), 1, len(kernel)) }
	edit := func(f func(b []byte)) []byte { b := good(); f(b); return b }
	tests := []struct {
		name  string
		image []byte
	}{
		{"empty", nil},
		{"cut in the header", good()[:setupEnd-1]},
		{"cut in the payload", good()[:1200]},
		{"other magic", edit(func(b []byte) { b[offHeader]++ })},
		{"old protocol", edit(func(b []byte) { b[offVersion] = 7 })},
		{"payload far out", edit(func(b []byte) { b[offPayloadOffset+3] = 0xff })},
		{"payload too long", edit(func(b []byte) { b[offPayloadLength+3] = 0xff })},
		{"no payload", edit(func(b []byte) { copy(b[offPayloadLength:], "\x00\x00\x00\x00") })},
		{"unknown compression", edit(func(b []byte) { b[2*512+100]++ })},
		{"damaged payload", edit(func(b []byte) { clear(b[2*512+108 : 2*512+140]) })},
		{"larger than it says", bzImage(pack(t, lz4Legacy, kernel), 1, MaxKernel+1)},
		{"smaller than it says", bzImage(pack(t, lz4Legacy, kernel), 1, len(kernel)+1)},
		{"no ELF file", bzImage(pack(t, lz4Legacy, kernel[1:]), 1, len(kernel)-1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := Vmlinux(tt.image); !errors.Is(err, ErrFormat) {
				t.Errorf("got %d bytes, error %v", len(got), err)
			}
		})
	}
}

func FuzzVmlinux(f *testing.F) {
	small := []byte("\x7fELF and some code")
	f.Add(bzImage(pack(f, lz4Legacy, small), 1, len(small)))
	f.Add(bzImage(pack(f, zstdw, small), 1, len(small)))
	f.Add(bzImage(pack(f, gz, small), 1, -1))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Vmlinux(b)
		if (err == nil) != bytes.HasPrefix(got, []byte("\x7fELF")) {
			t.Errorf("got %d bytes, error %v", len(got), err)
		}
	})
}
