package ext4

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
)

// writeBufferSize is how much is written at once. It is a multiple of the
// block size, and small enough to stay in the processor's cache between the
// read and the write.
const writeBufferSize = 1 << 20

// blockWriter writes blocks one after the other. Contents of files are read
// straight into its buffer.
type blockWriter struct {
	f    *os.File
	buf  []byte
	n    int    // bytes in buf, a multiple of the block size
	base uint64 // block number of buf's begin
}

func newBlockWriter(f *os.File, start uint64) *blockWriter {
	return &blockWriter{f: f, buf: make([]byte, writeBufferSize), base: start}
}

// next returns the number of the block that is written next.
func (w *blockWriter) next() uint64 { return w.base + uint64(w.n/blockSize) }

// flush writes what is buffered.
func (w *blockWriter) flush() error {
	if w.n == 0 {
		return nil
	}
	if end := w.next(); end > maxImageSize/blockSize {
		return fmt.Errorf("the image grows beyond %d bytes: %w", int64(maxImageSize), errdefs.ErrResourceExhausted)
	}
	if _, err := w.f.WriteAt(w.buf[:w.n], int64(w.base)*blockSize); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	w.base += uint64(w.n / blockSize)
	w.n = 0
	return nil
}

// writeBlock appends one block and returns its number.
func (w *blockWriter) writeBlock(b []byte) (uint64, error) {
	if w.n == len(w.buf) {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	at := w.next()
	copy(w.buf[w.n:w.n+blockSize], b)
	w.n += blockSize
	return at, nil
}

var zeroBlock [blockSize]byte

func isZero(b []byte) bool {
	return b[0] == 0 && b[len(b)-1] == 0 && bytes.Equal(b, zeroBlock[:len(b)])
}

// holeGranule returns the shortest run of zero blocks that becomes a hole in a
// file that has n extents already. It grows, so that a file of alternating
// zeros cannot make the list of its extents grow without bound: past the last
// step a file has at most one extent for each writeBufferSize.
func holeGranule(n int) int {
	return 1 << min(n/1024, 8)
}

// fileSink receives the contents of one file.
type fileSink struct {
	w       *blockWriter
	logical uint32 // next block of the file
	extents []extent
}

// readFrom appends size bytes of r, which begin at a block boundary of the
// file; what is missing to a whole block at the end is zero. Blocks of zeros
// become holes.
func (s *fileSink) readFrom(ctx context.Context, r io.Reader, size int64) error {
	w := s.w
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		// What does not fit begins with an empty buffer where holes must be
		// long, or it would cut them short.
		if w.n == len(w.buf) || int64(len(w.buf)-w.n) < size && holeGranule(len(s.extents)) > 1 {
			if err := w.flush(); err != nil {
				return err
			}
		}
		chunk := w.buf[w.n:]
		if size < int64(len(chunk)) {
			chunk = chunk[:size]
		}
		if _, err := io.ReadFull(r, chunk); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		size -= int64(len(chunk))
		padded := (len(chunk) + blockSize - 1) &^ (blockSize - 1)
		clear(w.buf[w.n+len(chunk) : w.n+padded])
		s.take(padded / blockSize)
	}
	return nil
}

// take accepts the n blocks that were read into the buffer after its end,
// leaving out those that are holes.
func (s *fileSink) take(n int) {
	w := s.w
	from, granule := w.n, holeGranule(len(s.extents))
	block := func(i int) []byte { return w.buf[from+i*blockSize : from+(i+1)*blockSize] }
	for i := 0; i < n; {
		run := 0
		for i+run < n && isZero(block(i+run)) {
			run++
		}
		if run >= granule {
			i += run
			continue
		}
		// A run of data, with the zeros that are too few for a hole.
		end := i + run
		for end < n && !isZero(block(end)) {
			end++
		}
		s.extents = appendExtent(s.extents, s.logical+uint32(i), uint32(w.next()), uint32(end-i))
		if at := from + i*blockSize; at != w.n {
			copy(w.buf[w.n:], w.buf[at:from+end*blockSize])
		}
		w.n += (end - i) * blockSize
		i = end
	}
	s.logical += uint32(n)
}
