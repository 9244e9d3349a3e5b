// Package facade makes the small host directory that a snapshot's mount points
// at. Clients of containerd open that directory to look up users and groups of
// an image; everything else in the image only the guest reads. So the facade
// holds etc/passwd and etc/group, as the stack of the snapshot's layers shows
// them, and nothing else.
package facade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/log"

	"github.com/applevm/applevm/snapshotter/union"
)

// MaxFileSize bounds a file of the facade, in bytes. A passwd file of 1 MiB
// has about 15,000 users.
const MaxFileSize = 1 << 20

// files are what clients look up in an image (containerd's pkg/oci: WithUser,
// WithAdditionalGIDs and their kin).
var files = []string{"etc/passwd", "etc/group"}

// Write writes the facade of a file system into the directory dir, which must
// exist. A file that the file system has not, or that no client could read as
// a list of users, is left out; a client then says that the user is unknown.
func Write(ctx context.Context, dir string, merged *union.Merged) error {
	for _, name := range files {
		content, err := read(ctx, merged, name)
		switch {
		case err == nil:
			err = put(dir, name, content)
		case errors.Is(err, fs.ErrNotExist):
			err = drop(dir, name)
		case isImageFault(err):
			log.G(ctx).WithError(err).Warn("names in this file of the image cannot be looked up")
			err = drop(dir, name)
		}
		if err != nil {
			return fmt.Errorf("facade: %w", err)
		}
	}
	return nil
}

var errTooLong = fmt.Errorf("longer than %d bytes", MaxFileSize)

// isImageFault reports whether err says that an image has no sensible file of
// that name, not that the image could not be read.
func isImageFault(err error) bool {
	for _, target := range []error{errTooLong, union.ErrTooMany, union.ErrNotRegular, union.ErrIsDir} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// read returns the content of a file of the union.
func read(ctx context.Context, merged *union.Merged, name string) ([]byte, error) {
	f, err := merged.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened to read
	b, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > MaxFileSize {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errTooLong}
	}
	return b, nil
}

// put writes one file of the facade, atomically. Modes are set whatever the
// umask is.
func put(dir, name string, content []byte) error {
	path := filepath.Join(dir, filepath.FromSlash(name))
	parent := filepath.Dir(path)
	if err := os.Mkdir(parent, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(parent, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(parent, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no effect after the rename
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

// drop removes a file that an earlier Write made.
func drop(dir, name string) error {
	err := os.Remove(filepath.Join(dir, filepath.FromSlash(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
