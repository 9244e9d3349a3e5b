// Package bzimage takes the uncompressed kernel out of a bzImage.
//
// u-root has a package that does so too; this one reads what untrusted or
// damaged files hold without a panic, writes no log and runs no programs.
package bzimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// MaxKernel is the largest uncompressed kernel, in bytes, that Vmlinux accepts.
const MaxKernel = 256 << 20

// ErrFormat is returned, wrapped with the details, for a file that is no bzImage.
var ErrFormat = errors.New("not a bzImage")

// Offsets of setup header fields in the file, and what the header's magic and
// payload need at least (Documentation/arch/x86/boot.rst).
const (
	offSetupSects    = 0x1f1
	offHeader        = 0x202
	offVersion       = 0x206
	offPayloadOffset = 0x248
	offPayloadLength = 0x24c
	setupEnd         = 0x250

	headerMagic    = "HdrS"
	payloadVersion = 0x0208 // the first protocol version with a payload field
)

// Vmlinux returns the ELF file that the bzImage's payload holds, compressed
// with gzip, zstd or lz4 (not xz: the kernel's build applies a filter for x86 code
// first, which no Go library undoes).
func Vmlinux(b []byte) ([]byte, error) {
	if len(b) < setupEnd || string(b[offHeader:offHeader+4]) != headerMagic {
		return nil, fmt.Errorf("%w: no setup header", ErrFormat)
	}
	if v := binary.LittleEndian.Uint16(b[offVersion:]); v < payloadVersion {
		return nil, fmt.Errorf("%w: boot protocol %#x has no payload field", ErrFormat, v)
	}
	sects := uint64(b[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + uint64(binary.LittleEndian.Uint32(b[offPayloadOffset:]))
	end := start + uint64(binary.LittleEndian.Uint32(b[offPayloadLength:]))
	// The last four bytes are the uncompressed size, for each format but gzip
	// appended to the stream by the kernel's build, for gzip its own trailer.
	if end > uint64(len(b)) || end-start < 8 {
		return nil, fmt.Errorf("%w: payload at %d to %d of %d bytes", ErrFormat, start, end, len(b))
	}
	payload := b[start:end]
	size := binary.LittleEndian.Uint32(payload[len(payload)-4:])
	if size > MaxKernel {
		return nil, fmt.Errorf("%w: uncompressed size of %d bytes", ErrFormat, size)
	}
	r, err := decompressor(payload)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if _, err := io.CopyN(&out, r, int64(size)); err != nil {
		return nil, fmt.Errorf("%w: payload: %w", ErrFormat, err)
	}
	if !bytes.HasPrefix(out.Bytes(), []byte("\x7fELF")) {
		return nil, fmt.Errorf("%w: payload is no ELF file", ErrFormat)
	}
	return out.Bytes(), nil
}

func decompressor(payload []byte) (io.Reader, error) {
	magic := func(s string) bool { return bytes.HasPrefix(payload, []byte(s)) }
	r := bytes.NewReader(payload)
	var (
		d   io.Reader
		err error
	)
	switch {
	case magic("\x02\x21\x4c\x18"):
		d = lz4.NewReader(r)
	case magic("\x1f\x8b"):
		d, err = gzip.NewReader(r)
	case magic("\x28\xb5\x2f\xfd"):
		d, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxKernel))
	default:
		err = fmt.Errorf("unknown compression %x", payload[:4])
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return d, nil
}
