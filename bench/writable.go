package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/applevm/applevm/snapshotter/ext4"
)

// writableSize is the default of a container's writable image.
const writableSize = 64 << 30

var writableImage = group{
	rows: []string{"writable-image/mke2fs", "writable-image/create"},
	run:  runWritableImage,
}

// runWritableImage measures how long it takes to make a container's empty writable
// image, beside mke2fs with its defaults.
func runWritableImage(ctx context.Context, e *env) error {
	dir, err := os.MkdirTemp("", "writable")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var ours, theirs []float64
	for i := range e.runs {
		path := filepath.Join(dir, fmt.Sprint("image", i))
		took, err := timeImage(path, func() error { return createEmpty(path) })
		if err != nil {
			return err
		}
		ours = append(ours, took)
		took, err = timeImage(path, func() error { return mke2fs(ctx, path) })
		if err != nil {
			return err
		}
		theirs = append(theirs, took)
	}
	base := median(theirs)
	e.report.add("writable-image/mke2fs", base, "ms")
	e.report.atMostBeside("writable-image/create", median(ours), "ms", 10, "writable-image/mke2fs", base)
	return nil
}

// timeImage returns how many milliseconds it takes to make the image path, and
// removes it.
func timeImage(path string, create func() error) (float64, error) {
	start := time.Now()
	err := create()
	took := float64(time.Since(start)) / 1e6
	if err != nil {
		return 0, err
	}
	return took, os.Remove(path)
}

func createEmpty(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := ext4.CreateEmpty(f, writableSize, ext4.EmptyOptions{}); err != nil {
		return err
	}
	return f.Close()
}

func mke2fs(ctx context.Context, path string) error {
	name, err := exec.LookPath("mke2fs")
	if err != nil {
		name = "/sbin/mke2fs" // not in the PATH of Debian's ordinary users
	}
	out, err := exec.CommandContext(ctx, name, "-q", "-t", "ext4", path, fmt.Sprint(writableSize>>10)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
