package images

import (
	"bufio"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Gzip returns, from the cache or newly made, a cached tar as Docker compresses
// layers: Go's gzip at level 6.
func Gzip(ctx context.Context, tar string) (string, error) {
	return compressed(ctx, tar, ".gz", func(w io.Writer) (io.WriteCloser, error) {
		return gzip.NewWriterLevel(w, 6)
	})
}

// Zstd returns, from the cache or newly made, a cached tar as BuildKit compresses
// layers: zstd at its default level.
func Zstd(ctx context.Context, tar string) (string, error) {
	return compressed(ctx, tar, ".zst", func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w)
	})
}

func compressed(ctx context.Context, tar, suffix string, compress func(io.Writer) (io.WriteCloser, error)) (string, error) {
	return cached(ctx, strings.TrimSuffix(filepath.Base(tar), ".tar")+suffix, tar, func(_, out string) error {
		in, err := os.Open(tar)
		if err != nil {
			return err
		}
		defer in.Close()
		f, err := os.Create(out)
		if err != nil {
			return err
		}
		defer f.Close()
		buf := bufio.NewWriterSize(f, 1<<20)
		w, err := compress(buf)
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, in); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		if err := buf.Flush(); err != nil {
			return err
		}
		return f.Close()
	})
}
