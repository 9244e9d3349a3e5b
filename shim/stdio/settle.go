package stdio

import (
	"context"
	"time"
)

// stalled is how long output may stay unread until it is taken for output that
// nobody is going to read.
const stalled = 10 * time.Second

// Bounds of the time between two looks at what has not been read yet.
const (
	lookFirst = 200 * time.Microsecond
	lookLast  = 10 * time.Millisecond
)

// Settle is called when the process has ended, before anybody is told. It returns
// when those who have the other ends open have read all that the process wrote,
// when nothing was read for ten seconds, or when ctx ends.
//
// Clients need it: containerd's closes its ends of the FIFOs as soon as it hears
// of the exit (client.task.Delete, cio.Cancel), nerdctl's logging program its pipes.
//
// Then nobody reads the process's stdin any more.
//
// last says that no process is left which could write, so that who has not opened
// a FIFO by now will find nothing in it.
func (s *IO) Settle(ctx context.Context, last bool) {
	if s.stdin != nil {
		defer s.stdin.src.Close()
	}
	if last {
		for _, e := range s.outputs() {
			e.dst.leave()
		}
	}
	for _, e := range s.outputs() {
		e.settle(ctx, func() bool {
			select {
			case <-e.marked:
				return e.dst.unread() == 0
			default:
				return false
			}
		})
	}
}

// awaitReader waits, when a stream has ended, until what was written has been read.
func (s *IO) awaitReader(e *end) {
	e.dst.leave()
	e.settle(s.ctx, func() bool { return e.dst.unread() == 0 })
}

// settle returns when the stream is done, settled says true, ctx ends, or no byte
// has moved for too long.
func (e *end) settle(ctx context.Context, settled func() bool) {
	wait := lookFirst
	written, unread, since := e.written.Load(), e.dst.unread(), time.Now()
	for !settled() {
		select {
		case <-e.done:
			return
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, lookLast)
		if w, u := e.written.Load(), e.dst.unread(); w != written || u != unread {
			written, unread, since = w, u, time.Now()
		} else if time.Since(since) > stalled {
			return
		}
	}
}
