//go:build unix

package stdio

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// openStdin opens the FIFO at path for reading. keep is a writer of it that
// holds the FIFO's end back while clients come and go, until CloseStdin.
func openStdin(path string) (src io.ReadCloser, keep io.Closer, err error) {
	fifo, err := isFIFO(path)
	if err != nil {
		return nil, nil, err
	}
	// O_NONBLOCK: do not wait for a writer here.
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	if !fifo {
		return r, io.NopCloser(nil), nil
	}
	w, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, w, nil
}

// openOutput opens the FIFO, or what else there is, at path for writing. A
// FIFO's reader is opened too, so that it neither blocks here nor breaks when a
// client goes away and another comes.
func openOutput(path string) (io.WriteCloser, error) {
	fifo, err := isFIFO(path)
	if err != nil {
		return nil, err
	}
	if !fifo {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return nil, err
		}
		return &onceCloser{File: f}, nil
	}
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	w, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		r.Close()
		return nil, err
	}
	return &onceCloser{File: w, also: r}, nil
}

// openFile opens a log file, which is made if there is none.
func openFile(path string) (io.WriteCloser, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q is not an absolute path", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, err
	}
	return &onceCloser{File: f}, nil
}

func isFIFO(path string) (bool, error) {
	st, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	if st.IsDir() {
		return false, &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	}
	return st.Mode()&fs.ModeNamedPipe != 0, nil
}
