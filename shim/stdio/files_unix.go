//go:build unix

package stdio

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// lookAgain is how often a FIFO is looked at whose last writer is to go, where
// readers do not hear of that (readersHearEnd).
const lookAgain = 100 * time.Millisecond

// input is where stdin comes from.
type input struct {
	*os.File
	// keep is a writer of the FIFO that holds its end back while clients come and
	// go; nil if it is none.
	keep *os.File
	// ending is set when keep is closed.
	ending atomic.Bool
	// oneClient lets the input end with its first client, once that has sent
	// something (Config.OneClient).
	oneClient bool
	// unwanted is set when nobody reads it any more.
	unwanted atomic.Bool
	once     sync.Once
}

// openStdin opens the FIFO, or what else there is, at path for reading.
func openStdin(path string) (*input, error) {
	fifo, err := isFIFO(path)
	if err != nil {
		return nil, err
	}
	if !fifo {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		return &input{File: f}, nil
	}
	r, w, err := openFIFO(path)
	if err != nil {
		return nil, err
	}
	return &input{File: r, keep: w}, nil
}

// Read implements io.Reader.
func (i *input) Read(p []byte) (int, error) {
	for {
		if i.unwanted.Load() {
			return 0, errUnwanted
		}
		if !readersHearEnd && i.ending.Load() {
			_ = i.SetReadDeadline(time.Now().Add(lookAgain)) // a plain file has none and needs none
		}
		n, err := i.File.Read(p)
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if n > 0 && i.oneClient {
			i.letEnd()
		}
		return n, err
	}
}

var errUnwanted = errors.New("the process reads its stdin no more")

// letGo ends reading, and leaves the FIFO open.
func (i *input) letGo() {
	i.unwanted.Store(true)
	_ = i.SetReadDeadline(time.Now())
}

// letEnd lets the input end when its last client has closed it.
func (i *input) letEnd() {
	i.once.Do(func() {
		if i.keep == nil {
			return
		}
		i.ending.Store(true)
		i.keep.Close()
		if !readersHearEnd {
			_ = i.SetReadDeadline(time.Now())
		}
	})
}

// output is where stdout or stderr goes.
type output struct {
	*os.File
	// reader is a reader of the FIFO, so that writing neither fails nor blocks for
	// good when a client goes away and another comes; nil if it is none.
	reader *os.File
	// keepOn says that bytes which cannot be written are dropped, and those after
	// them tried again: a full disk must not stop a process, and may get room.
	keepOn bool

	leaveOnce, closeOnce sync.Once
	isClosed             atomic.Bool
	err                  error
}

// openOutput opens the FIFO, or what else there is, at path for writing.
func openOutput(path string) (*output, error) {
	fifo, err := isFIFO(path)
	if err != nil {
		return nil, err
	}
	if !fifo {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return nil, err
		}
		return &output{File: f, keepOn: true}, nil
	}
	r, w, err := openFIFO(path)
	if err != nil {
		return nil, err
	}
	return &output{File: w, reader: r}, nil
}

// openLogFile opens the file that a file:// URI names, which is made, with its
// parents, if there is none.
func openLogFile(uri string) (*output, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(u.Path) || u.Host != "" && u.Host != "localhost" {
		return nil, fmt.Errorf("%q does not name an absolute path, as file:///var/log/x does", uri)
	}
	if err := os.MkdirAll(filepath.Dir(u.Path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(u.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, err
	}
	return &output{File: f, keepOn: true}, nil
}

// openFIFO opens both ends, without waiting for anybody.
//
// Not by os.OpenFile: on macOS that leaves FIFOs out of its poller, and a read of
// one that has no bytes would fail instead of waiting. os.NewFile does not.
func openFIFO(path string) (r, w *os.File, err error) {
	open := func(flag int) (*os.File, error) {
		for {
			fd, err := syscall.Open(path, flag|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
			if err == nil {
				return os.NewFile(uintptr(fd), path), nil
			}
			if err != syscall.EINTR {
				return nil, &fs.PathError{Op: "open", Path: path, Err: err}
			}
		}
	}
	if r, err = open(syscall.O_RDONLY); err != nil {
		return nil, nil, err
	}
	if w, err = open(syscall.O_WRONLY); err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, w, nil
}

// leave says that nobody but who has the FIFO open will read it: without a reader,
// writing fails from now on.
func (o *output) leave() {
	o.leaveOnce.Do(func() {
		if o.reader != nil {
			o.reader.Close()
		}
	})
}

// closed tells whether Close was called.
func (o *output) closed() bool { return o.isClosed.Load() }

// Close may be called more than once.
func (o *output) Close() error {
	o.closeOnce.Do(func() {
		o.isClosed.Store(true)
		o.err = o.File.Close()
		o.leave()
	})
	return o.err
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
