package task

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/log"
)

// Publisher sends events to containerd.
type Publisher interface {
	events.Publisher
	io.Closer
}

// eventQueue is how many events may wait for containerd before calls wait too.
const eventQueue = 128

// flushTimeout bounds the sending of what is queued when the shim ends,
// awayTimeout if containerd did not take the event before, or for awayAfter does not
// take the one that is being sent: each attempt then takes seconds (pkg/shim waits for
// containerd's socket to appear), and a shim that has nothing left to do is not to stay
// for as long.
const (
	flushTimeout = 5 * time.Second
	awayTimeout  = 200 * time.Millisecond
	awayAfter    = time.Second
)

// forwarder publishes events one after the other, in the order of send.
type forwarder struct {
	ctx       context.Context
	publisher Publisher
	queue     chan events.Event
	done      chan struct{}
	away      atomic.Bool  // the last event was not taken
	sending   atomic.Int64 // since when an event is being sent (UnixNano), 0 if none is

	mu     sync.RWMutex
	closed bool
}

func newForwarder(ctx context.Context, p Publisher) *forwarder {
	f := &forwarder{ctx: ctx, publisher: p, queue: make(chan events.Event, eventQueue), done: make(chan struct{})}
	go f.run()
	return f
}

func (f *forwarder) send(e events.Event) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.closed {
		f.queue <- e
	}
}

func (f *forwarder) run() {
	defer close(f.done)
	defer f.publisher.Close()
	for e := range f.queue {
		f.sending.Store(time.Now().UnixNano())
		err := f.publisher.Publish(f.ctx, topic(e), e)
		f.sending.Store(0)
		f.away.Store(err != nil)
		if err != nil {
			log.G(f.ctx).WithError(err).WithField("topic", topic(e)).Error("event not published")
		}
	}
}

// close sends what is queued and ends the forwarder.
func (f *forwarder) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, f.patience())
	defer cancel()
	go func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.closed {
			f.closed = true
			close(f.queue)
		}
	}()
	select {
	case <-f.done:
	case <-ctx.Done():
	}
}

// patience is how long close waits.
func (f *forwarder) patience() time.Duration {
	since := f.sending.Load()
	if f.away.Load() || since != 0 && time.Since(time.Unix(0, since)) > awayAfter {
		return awayTimeout
	}
	return flushTimeout
}

// topic is an event's topic, as containerd's clients filter for it
// (containerd, core/runtime/events.go).
func topic(e events.Event) string {
	switch e.(type) {
	case *apievents.TaskCreate:
		return "/tasks/create"
	case *apievents.TaskStart:
		return "/tasks/start"
	case *apievents.TaskExit:
		return "/tasks/exit"
	case *apievents.TaskDelete:
		return "/tasks/delete"
	case *apievents.TaskExecAdded:
		return "/tasks/exec-added"
	case *apievents.TaskExecStarted:
		return "/tasks/exec-started"
	case *apievents.TaskOOM:
		return "/tasks/oom"
	case *apievents.TaskPaused:
		return "/tasks/paused"
	case *apievents.TaskResumed:
		return "/tasks/resumed"
	}
	return "/tasks/?"
}
