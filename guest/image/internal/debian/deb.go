package debian

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// ErrFormat is returned, wrapped with the details, for a file that is no
// Debian package.
var ErrFormat = errors.New("not a Debian package")

const (
	arMagic      = "!<arch>\n"
	arHeaderSize = 60
)

// Data returns the tar stream with a package's files (deb(5)). A package is an
// ar archive of the members debian-binary, control.tar.* and data.tar.*.
func Data(deb io.Reader) (*tar.Reader, error) {
	r := bufio.NewReaderSize(deb, 1<<20)
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != arMagic {
		return nil, fmt.Errorf("%w: no ar archive", ErrFormat)
	}
	for {
		var h [arHeaderSize]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return nil, fmt.Errorf("%w: no data.tar in it: %w", ErrFormat, err)
		}
		// ar(5): name 16 bytes, size in decimal at 48, the end mark at 58.
		name := strings.TrimRight(string(h[:16]), " /")
		size, err := strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
		if err != nil || size < 0 || string(h[58:]) != "`\n" {
			return nil, fmt.Errorf("%w: damaged ar header", ErrFormat)
		}
		if ext, ok := strings.CutPrefix(name, "data.tar"); ok {
			return data(io.LimitReader(r, size), ext)
		}
		if _, err := io.CopyN(io.Discard, r, size+size%2); err != nil {
			return nil, fmt.Errorf("%w: member %q: %w", ErrFormat, name, err)
		}
	}
}

func data(r io.Reader, ext string) (*tar.Reader, error) {
	var err error
	switch ext {
	case "":
	case ".gz":
		r, err = gzip.NewReader(r)
	case ".xz":
		r, err = xz.NewReader(r)
	case ".zst":
		r, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	default:
		err = fmt.Errorf("data.tar%s: unknown compression", ext)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return tar.NewReader(r), nil
}
