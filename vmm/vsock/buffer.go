package vsock

import (
	"sync"

	"github.com/applevm/applevm/vmm/vhostuser"
)

const (
	// window is the receive buffer of a stream, in bytes, and thereby the
	// credit that the guest gets. Linux's own default is the same.
	window = 256 << 10
	// smallWindow is given to streams made while there are more than
	// fullWindows, which bounds what a guest can make us hold to about 60 MiB.
	smallWindow = 32 << 10
	fullWindows = 128
	// maxStreams bounds the streams of a device.
	maxStreams = 1024

	minBuffer = 4 << 10
)

// windows holds buffers of the full size: a stream needs one only while its
// reader is behind.
var windows = sync.Pool{New: func() any { return new([window]byte) }}

// buffer is a ring of bytes that grows as far as it is allowed to and gives a
// large one back as soon as it is empty.
type buffer struct {
	limit int
	buf   []byte
	start int
	n     int
}

// fill appends n bytes of src from offset on. The caller has checked that they
// fit within the limit; false means that src was shorter.
func (b *buffer) fill(src vhostuser.Segments, offset uint64, n int) bool {
	b.grow(b.n + n)
	end := b.start + b.n
	if end >= len(b.buf) {
		end -= len(b.buf)
	}
	first := b.buf[end:min(len(b.buf), end+n)]
	got := src.CopyOut(first, offset)
	if got == len(first) && got < n {
		got += src.CopyOut(b.buf[:n-got], offset+uint64(got))
	}
	b.n += got
	return got == n
}

func (b *buffer) grow(need int) {
	if need <= len(b.buf) {
		return
	}
	size := max(minBuffer, len(b.buf))
	for size < need {
		size *= 4
	}
	size = min(size, b.limit)
	var grown []byte
	if size == window {
		grown = windows.Get().(*[window]byte)[:]
	} else {
		grown = make([]byte, size)
	}
	n := copy(grown, b.buf[b.start:min(len(b.buf), b.start+b.n)])
	copy(grown[n:], b.buf[:b.n-n])
	b.drop()
	b.buf, b.start = grown, 0
}

// drain moves bytes from the buffer's beginning to p.
func (b *buffer) drain(p []byte) int {
	n := copy(p, b.buf[b.start:min(len(b.buf), b.start+b.n)])
	if n < len(p) && n < b.n {
		n += copy(p[n:], b.buf[:b.n-n])
	}
	b.n -= n
	if b.start += n; b.start >= len(b.buf) {
		b.start -= len(b.buf)
	}
	if b.n == 0 {
		b.start = 0
		if len(b.buf) == window {
			b.drop()
		}
	}
	return n
}

// drop gives up the memory.
func (b *buffer) drop() {
	if len(b.buf) == window {
		windows.Put((*[window]byte)(b.buf))
	}
	b.buf, b.start = nil, 0
}
