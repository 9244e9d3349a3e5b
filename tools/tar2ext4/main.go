// Command tar2ext4 unpacks a layer as Microsoft's hcsshim does: a gzip or zstd
// blob is decompressed, hashed and written as an ext4 image by hcsshim's own
// converter. The bench measures it beside ours. It is a module of its own, so that
// what hcsshim needs is no dependency of applevm.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: tar2ext4 BLOB IMAGE")
		os.Exit(2)
	}
	diffID, err := convert(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "tar2ext4:", err)
		os.Exit(1)
	}
	// What the bench's own processes print, as far as it applies.
	_ = json.NewEncoder(os.Stdout).Encode(map[string]string{"diff_id": diffID})
}

// convert writes the layer in blob to image and returns its diffID.
func convert(blob, image string) (string, error) {
	in, err := os.Open(blob)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.Create(image)
	if err != nil {
		return "", err
	}
	defer out.Close()
	plain, err := decompress(bufio.NewReaderSize(in, 1<<20))
	if err != nil {
		return "", fmt.Errorf("%s: %w", blob, err)
	}
	defer plain.Close()
	hash := sha256.New()
	// Hashed in large pieces: the tar reader asks for single blocks.
	tar := bufio.NewReaderSize(io.TeeReader(plain, hash), 128<<10)
	if err := tar2ext4.Convert(tar, out, tar2ext4.ConvertWhiteout); err != nil {
		return "", fmt.Errorf("convert %s: %w", blob, err)
	}
	// The diffID covers what follows the end of the tar.
	if _, err := io.Copy(io.Discard, tar); err != nil {
		return "", fmt.Errorf("read %s: %w", blob, err)
	}
	return "sha256:" + hex.EncodeToString(hash.Sum(nil)), out.Close()
}

// decompress returns the content of a gzip or zstd stream.
func decompress(blob *bufio.Reader) (io.ReadCloser, error) {
	head, err := blob.Peek(2)
	if err != nil {
		return nil, err
	}
	if head[0] == 0x1f && head[1] == 0x8b {
		return gzip.NewReader(blob)
	}
	// One goroutine, as our own converter: CPU time is what is compared.
	d, err := zstd.NewReader(blob, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}
