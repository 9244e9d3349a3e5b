package vhostuser

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var (
	past  = time.Unix(1, 0)
	never = time.Time{}
)

// eventfd is an event file that we write to. A nil one is valid and does nothing.
type eventfd struct {
	mu sync.Mutex
	fd int
}

// newEventfd takes fd over; -1 means that there is none.
func newEventfd(fd int) *eventfd {
	if fd < 0 {
		return nil
	}
	return &eventfd{fd: fd}
}

// signal adds one. Its only failure, a full counter, means that the other side
// has something to wake up for already.
func (e *eventfd) signal() {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fd >= 0 {
		one := [8]byte{1}
		_, _ = unix.Write(e.fd, one[:])
	}
}

func (e *eventfd) close() {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fd >= 0 {
		_ = unix.Close(e.fd)
		e.fd = -1
	}
}
