// Package console keeps what a guest prints, and reads from it how the guest ended.
package console

import (
	"bytes"
	"strings"
	"sync"
)

// Tail keeps the last bytes that were written to it, at most Limit. Writing
// never fails and never waits, so a guest cannot be stopped by its own output.
type Tail struct {
	Limit int

	mu  sync.Mutex
	buf []byte
}

// Write implements io.Writer.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-t.Limit):]...)
	// Twice the limit, so that bytes are not moved at each write.
	if len(t.buf) > 2*t.Limit {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.Limit:]...)
	}
	return len(p), nil
}

// Bytes returns a copy of what is kept.
func (t *Tail) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf[max(0, len(t.buf)-t.Limit):])
}

// LastLines returns the last n lines of b that have something printable in them,
// for an error message: without control characters, each cut at 200 bytes.
func LastLines(b []byte, n int) string {
	var lines []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' && r != '\t' || r == 0x7f || r == '\uFFFD' {
				return -1
			}
			return r
		}, line))
		if line != "" {
			lines = append(lines, line[:min(len(line), 200)])
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
