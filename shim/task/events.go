package task

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/applevm/applevm/shim/publish"
)

// Publisher hands events to containerd (shim/publish). It is called for one event
// after the other.
type Publisher interface {
	// Forward makes one attempt. An event for which it returns publish.ErrRefused
	// is dropped, for any other error it is called again.
	Forward(ctx context.Context, e *types.Envelope) error
	io.Closer
}

// flushTimeout bounds the sending of what is queued when the shim ends,
// awayTimeout if containerd did not take the last attempt, or for awayAfter does not
// take the one that is being made: a shim that has nothing left to do is not to stay
// until containerd comes back.
const (
	flushTimeout = 5 * time.Second
	awayTimeout  = 200 * time.Millisecond
	awayAfter    = time.Second
)

// An event that was not taken is sent again after firstRetry, then after twice as
// long each time, at most lastRetry.
const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = time.Second
)

// forwarder publishes events one after the other, in the order of send, each for as
// long as it takes: a containerd that is restarted hears of all that happened
// meanwhile. The queue has no bound, for nobody waits for containerd who could send
// without it: what a shim tells on its own accord are the ends of processes that
// containerd has had it start, and running out of memory, at a rate that is bounded.
type forwarder struct {
	ctx       context.Context
	cancel    context.CancelFunc
	namespace string
	publisher Publisher
	done      chan struct{}

	mu      sync.Mutex
	queue   []*types.Envelope
	wake    chan struct{} // has an element when the queue or closed has changed
	closed  bool
	away    bool      // the last attempt failed
	sending time.Time // since when an attempt is being made, zero if none is
}

func newForwarder(ctx context.Context, namespace string, p Publisher) *forwarder {
	f := &forwarder{namespace: namespace, publisher: p, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	f.ctx, f.cancel = context.WithCancel(ctx)
	go f.run()
	return f
}

// send queues an event; it never waits.
func (f *forwarder) send(e events.Event) {
	a, err := typeurl.MarshalAnyToProto(e)
	if err != nil {
		log.G(f.ctx).WithError(err).WithField("topic", topic(e)).Error("event not published")
		return
	}
	env := &types.Envelope{Timestamp: timestamppb.Now(), Namespace: f.namespace, Topic: topic(e), Event: a}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.queue = append(f.queue, env)
		f.nudge()
	}
}

func (f *forwarder) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *forwarder) run() {
	defer close(f.done)
	defer f.publisher.Close()
	for {
		e, more := f.next()
		switch {
		case e != nil:
			f.deliver(e)
		case !more:
			return
		default:
			select {
			case <-f.wake:
			case <-f.ctx.Done():
				return
			}
		}
	}
}

// next takes an event from the queue; more is false if none will come.
func (f *forwarder) next() (e *types.Envelope, more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		return nil, !f.closed
	}
	e = f.queue[0]
	f.queue = f.queue[1:]
	return e, true
}

// deliver sends one event until containerd has it or the forwarder is to end.
func (f *forwarder) deliver(e *types.Envelope) {
	logger := log.G(f.ctx).WithField("topic", e.Topic)
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		f.attempt(time.Now(), nil)
		err := f.publisher.Forward(f.ctx, e)
		f.attempt(time.Time{}, err)
		switch {
		case err == nil:
			return
		case errors.Is(err, publish.ErrRefused):
			logger.WithError(err).Error("event not published")
			return
		case wait == firstRetry:
			logger.WithError(err).Warn("containerd does not take an event: it is sent again until it does")
		}
		select {
		case <-time.After(wait):
		case <-f.ctx.Done():
			logger.WithError(err).Error("event not published: the shim ends and containerd is away")
			return
		}
	}
}

// attempt notes the begin of an attempt, or its end and result.
func (f *forwarder) attempt(began time.Time, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sending = began
	if began.IsZero() {
		f.away = err != nil
	}
}

// close sends what is queued, for as long as patience says, and ends the forwarder.
func (f *forwarder) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, f.patience())
	defer cancel()
	f.mu.Lock()
	f.closed = true
	f.nudge()
	f.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
	}
	f.cancel()
}

// patience is how long close waits.
func (f *forwarder) patience() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away || !f.sending.IsZero() && time.Since(f.sending) > awayAfter {
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
