// Package stream carries one stdio stream of a process over a vsock connection.
//
// The agent dials and sends the stream's name: TokenSize random bytes that the
// host chose, so that no other process in the guest can take the stream over.
// Then bytes flow one way, in frames: a 32-bit big-endian length and as many
// bytes. A frame of length 0 is the end of the stream. vz's connections cannot
// be half-closed, which is why the end is a frame; a connection that ends
// without one has lost data, and readers get io.ErrUnexpectedEOF.
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
	"sync"
)

// TokenSize is the length of a stream's name on the wire, in bytes.
const TokenSize = 16

// MaxFrame is the longest frame, in bytes. A reader takes a longer one for an
// attack or a fault and gives up the stream.
const MaxFrame = 64 << 10

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

// Writer is the sending end. It is safe for concurrent use.
type Writer struct {
	mu     sync.Mutex
	w      io.Writer
	closed bool
	buf    []byte
}

// NewWriter returns a Writer that puts its frames on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write sends p in as many frames as it takes.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, ErrClosed
	}
	var n int
	for n < len(p) {
		chunk := p[n:min(len(p), n+MaxFrame)]
		// One write a frame: a header of its own would cost a packet.
		w.buf = binary.BigEndian.AppendUint32(w.buf[:0], uint32(len(chunk)))
		w.buf = append(w.buf, chunk...)
		if _, err := w.w.Write(w.buf); err != nil {
			return n, err
		}
		n += len(chunk)
	}
	return n, nil
}

// Close sends the end of the stream. It does not close the connection.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	_, err := w.w.Write(make([]byte, 4))
	return err
}

// Reader is the receiving end.
type Reader struct {
	r    *bufio.Reader
	left int
	err  error
}

// NewReader returns a Reader that takes its frames from r.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, MaxFrame+4)} }

// Read returns the stream's bytes, io.EOF at its end, and io.ErrUnexpectedEOF
// if the connection ended before the stream did.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	if r.left == 0 {
		var h [4]byte
		if _, err := io.ReadFull(r.r, h[:]); err != nil {
			return 0, r.fail(err)
		}
		n := binary.BigEndian.Uint32(h[:])
		switch {
		case n == 0:
			r.err = io.EOF
			return 0, r.err
		case n > MaxFrame:
			r.err = fmt.Errorf("stream frame of %d bytes, more than %d", n, MaxFrame)
			return 0, r.err
		}
		r.left = int(n)
	}
	n, err := r.r.Read(p[:min(len(p), r.left)])
	r.left -= n
	if err != nil {
		return n, r.fail(err)
	}
	return n, nil
}

func (r *Reader) fail(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	r.err = err
	return err
}
