package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/docker/go-units"
)

// allocated returns what a file takes on disk: st_blocks counts units of 512
// bytes, whatever the file system's block size (stat(2) on Linux and macOS).
func allocated(info fs.FileInfo) int64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.Size()
	}
	return st.Blocks * 512
}

// allocatedBelow returns what a directory and all in it take on disk. Files
// that are removed meanwhile do not count.
func allocatedBelow(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != dir:
			return nil
		case err != nil:
			return err
		}
		sum += allocated(info)
		return nil
	})
	return sum, err
}

// sizeText writes a number of bytes for programs and for people.
func sizeText(n int64) string {
	return fmt.Sprintf("%d bytes (%s)", n, units.BytesSize(float64(n)))
}
