// Package stream carries one stdio stream of a process over a vsock connection.
//
// The agent dials and sends the stream's name: TokenSize random bytes that the
// host chose, so that no other process in the guest can take the stream over.
// Then bytes flow one way, in frames: a 32-bit big-endian length and as many
// bytes. A frame of length 0 is the end of the stream. vz's connections cannot
// be half-closed, which is why the end is a frame; a connection that ends
// without one has lost data, and readers get io.ErrUnexpectedEOF.
//
// A length of 1<<31 is the mark, which has no bytes: all that the process wrote
// came before it. Others may hold the stream and go on writing.
package stream

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// TokenSize is the length of a stream's name on the wire, in bytes.
const TokenSize = 16

// headerSize is the length of a frame's header in bytes.
const headerSize = 4

// MaxFrame is how many bytes a frame carries at most. With its header it fills
// one packet of Linux's vsock (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE, 64 KiB); a byte more
// would cost a second packet. A reader takes a longer one for an attack or a fault
// and gives up the stream.
const MaxFrame = 64<<10 - headerSize

// markHeader is the header of the mark.
const markHeader = 1 << 31

const scheme = "stream:"

// Token is the name of a stream.
type Token [TokenSize]byte

// NewToken makes an unguessable name.
func NewToken() Token {
	var t Token
	rand.Read(t[:]) // never fails, see crypto/rand
	return t
}

// String returns the form that goes into the task API's stdin, stdout and
// stderr fields.
func (t Token) String() string { return scheme + hex.EncodeToString(t[:]) }

// ParseToken reads what String wrote.
func ParseToken(s string) (Token, error) {
	var t Token
	h, ok := strings.CutPrefix(s, scheme)
	b, err := hex.DecodeString(h)
	if !ok || err != nil || len(b) != TokenSize {
		return t, fmt.Errorf("%q is not the name of a stream", s)
	}
	copy(t[:], b)
	return t, nil
}

// ErrClosed is returned by Write after Close.
var ErrClosed = errors.New("stream is closed")

// Writer is the sending end. It is for one goroutine at a time.
type Writer struct {
	w      io.Writer
	closed bool
	buf    []byte // a header and a frame's bytes
}

// NewWriter returns a Writer that puts its frames on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Buffer returns room for the bytes of the next frame, for Send.
func (w *Writer) Buffer() []byte {
	if w.buf == nil {
		w.buf = make([]byte, headerSize+MaxFrame)
	}
	return w.buf[headerSize:]
}

// Send sends the first n bytes of Buffer as a frame.
func (w *Writer) Send(n int) error {
	switch {
	case w.closed:
		return ErrClosed
	case n == 0:
		return nil // a frame without bytes would be the end
	}
	// One write a frame: a header of its own would cost a packet.
	binary.BigEndian.PutUint32(w.buf, uint32(n))
	_, err := w.w.Write(w.buf[:headerSize+n])
	return err
}

// Write sends p in as many frames as it takes.
func (w *Writer) Write(p []byte) (int, error) {
	if w.closed {
		return 0, ErrClosed
	}
	var n int
	for n < len(p) {
		chunk := copy(w.Buffer(), p[n:])
		if err := w.Send(chunk); err != nil {
			return n, err
		}
		n += chunk
	}
	return n, nil
}

// Mark says that the process has ended and that all it wrote has been sent.
func (w *Writer) Mark() error {
	if w.closed {
		return ErrClosed
	}
	_, err := w.w.Write(binary.BigEndian.AppendUint32(nil, markHeader))
	return err
}

// Close sends the end of the stream. It does not close the connection.
func (w *Writer) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	_, err := w.w.Write(make([]byte, headerSize))
	return err
}

// Reader is the receiving end.
type Reader struct {
	// OnMark, if it is not nil, is called when the mark comes: what was sent before
	// it has been returned by Read, or taken by WriteTo's writer. It may be called
	// more than once.
	OnMark func()

	r    *bufio.Reader
	left int // bytes of the frame that have not been read
	err  error
}

// NewReader returns a Reader that takes its frames from r.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, headerSize+MaxFrame)}
}

// Read returns the stream's bytes, io.EOF at its end, and io.ErrUnexpectedEOF
// if the connection ended before the stream did.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, r.err
	}
	if err := r.next(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p[:min(len(p), r.left)])
	r.left -= n
	if err != nil {
		return n, r.fail(err)
	}
	return n, nil
}

// WriteTo writes the stream's bytes to w, without a copy in between, until the
// stream's end or an error of either side.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var n int64
	for {
		err := r.next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err == nil {
			_, err = r.r.Peek(1)
			if err != nil {
				err = r.fail(err)
			}
		}
		if err != nil {
			return n, err
		}
		b, _ := r.r.Peek(min(r.left, r.r.Buffered()))
		m, err := w.Write(b)
		_, _ = r.r.Discard(m)
		r.left -= m
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
}

// next reads headers until there are bytes to read.
func (r *Reader) next() error {
	for r.err == nil && r.left == 0 {
		h, err := r.r.Peek(headerSize)
		if err != nil {
			return r.fail(err)
		}
		n := binary.BigEndian.Uint32(h)
		_, _ = r.r.Discard(headerSize)
		switch {
		case n == 0:
			r.err = io.EOF
		case n == markHeader:
			if r.OnMark != nil {
				r.OnMark()
			}
		case n > MaxFrame:
			r.err = fmt.Errorf("stream frame of %d bytes, more than %d", n, MaxFrame)
		default:
			r.left = int(n)
		}
	}
	return r.err
}

func (r *Reader) fail(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	r.err = err
	return err
}
