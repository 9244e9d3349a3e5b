// Package filework is what the bench has done to files, by programs in a machine and on
// the host alike.
package filework

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// What is done.
const (
	Files    = 10_000    // small ones, 100 to a directory
	FileSize = 2 << 10   // bytes of each
	BigSize  = 256 << 20 // bytes of the large one
	block    = 1 << 20
)

// Times are in seconds.
type Times struct {
	// Create writes the small files, Stat looks at each, Read opens and reads each.
	Create, Stat, Read float64
	// Write writes the large file and waits until it is stored, ReadBig reads it.
	Write, ReadBig float64
}

// Do does it in dir, and removes what it made. forget makes the system forget what it
// knows of the files, where that is its own to forget.
func Do(dir string, forget func() error) (t Times, err error) {
	top := filepath.Join(dir, "work")
	defer func() { err = errors.Join(err, os.RemoveAll(top)) }()
	small := make([]byte, FileSize)
	each := func(do func(path string) error) error {
		for i := range Files {
			if err := do(filepath.Join(top, fmt.Sprintf("dir%02d", i/100), fmt.Sprintf("file%02d", i%100))); err != nil {
				return err
			}
		}
		return nil
	}
	big := filepath.Join(top, "big")
	buf := make([]byte, block)
	for _, step := range []struct {
		took *float64
		do   func() error
	}{
		{&t.Create, func() error {
			for i := range Files / 100 {
				if err := os.MkdirAll(filepath.Join(top, fmt.Sprintf("dir%02d", i)), 0o755); err != nil {
					return err
				}
			}
			return each(func(path string) error { return os.WriteFile(path, small, 0o644) })
		}},
		{&t.Stat, func() error {
			return each(func(path string) error {
				st, err := os.Stat(path)
				if err == nil && st.Size() != FileSize {
					err = fmt.Errorf("%s has %d bytes", path, st.Size())
				}
				return err
			})
		}},
		{&t.Read, func() error {
			return each(func(path string) error {
				b, err := os.ReadFile(path)
				if err == nil && len(b) != FileSize {
					err = fmt.Errorf("%s gave %d bytes", path, len(b))
				}
				return err
			})
		}},
		{&t.Write, func() error {
			f, err := os.Create(big)
			if err != nil {
				return err
			}
			for range BigSize / block {
				if _, err := f.Write(buf); err != nil {
					return errors.Join(err, f.Close())
				}
			}
			return errors.Join(f.Sync(), f.Close())
		}},
		{&t.ReadBig, func() error {
			f, err := os.Open(big)
			if err != nil {
				return err
			}
			defer f.Close()
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
			if err == nil && n != BigSize {
				err = fmt.Errorf("%s gave %d bytes", big, n)
			}
			return err
		}},
	} {
		if err := forget(); err != nil {
			return t, err
		}
		begin := time.Now()
		if err := step.do(); err != nil {
			return t, err
		}
		*step.took = time.Since(begin).Seconds()
	}
	return t, nil
}
