package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/applevm/applevm/snapshotter/differ"
)

// convert turns one layer into one image and prints the layer's diffID.
func convert(ctx context.Context, c *call) error {
	operands, err := c.parse(new(flag.FlagSet))
	if err != nil {
		return err
	}
	layer, out := operands[0], operands[1]
	in := c.in
	if layer != "-" {
		f, err := os.Open(layer)
		if err != nil {
			return lineError{fmt.Errorf("convert: %w", err)}
		}
		defer f.Close()
		in = f
	} else {
		layer = "standard input"
	}
	res, err := convertTo(ctx, in, out)
	if err != nil {
		return lineError{fmt.Errorf("convert %s: %w", layer, err)}
	}
	_, err = fmt.Fprintln(c.out, res.DiffID)
	return err
}

// convertTo writes the image of a layer to the new file out. Only a whole image
// ever has that name.
func convertTo(ctx context.Context, layer io.Reader, out string) (_ differ.Result, err error) {
	if err := refuseExisting(out); err != nil {
		return differ.Result{}, err
	}
	f, err := os.OpenFile(filepath.Join(filepath.Dir(out), "."+rand.Text()+".tmp"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return differ.Result{}, err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	in := interruptible(ctx, layer)
	defer in.Close()
	// The media type does not matter: the compression is found by content.
	res, err := differ.Convert(ctx, ocispec.MediaTypeImageLayer, in, f, differ.ConvertOptions{})
	if errors.Is(err, io.ErrUnexpectedEOF) && !errdefs.IsInvalidArgument(err) {
		// The decompressor says no more; the reader of the tar does.
		err = fmt.Errorf("the layer is truncated: %w", err)
	}
	if err != nil {
		return res, err
	}
	// The image's content must be on disk before its name is.
	if err := f.Sync(); err != nil {
		return res, err
	}
	if err := refuseExisting(out); err != nil {
		return res, err
	}
	return res, os.Rename(f.Name(), out)
}

func refuseExisting(out string) error {
	_, err := os.Lstat(out)
	if err == nil {
		return fmt.Errorf("%s exists already; remove it or name another file", out)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// interruptible returns what r has until ctx ends. A read of a terminal or a
// pipe cannot be interrupted; it is left behind.
func interruptible(ctx context.Context, r io.Reader) io.ReadCloser {
	pr, pw := io.Pipe()
	stop := context.AfterFunc(ctx, func() { pw.CloseWithError(context.Cause(ctx)) })
	go func() {
		defer stop()
		_, err := io.CopyBuffer(pw, struct{ io.Reader }{r}, make([]byte, 1<<20))
		pw.CloseWithError(err)
	}()
	return pr
}
