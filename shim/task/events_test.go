package task

import (
	"context"
	"errors"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
)

// answering is a publisher whose every answer the test gives.
type answering chan error

func (a answering) Publish(context.Context, string, events.Event) error { return <-a }
func (a answering) Close() error                                        { return nil }

// TestEventsOfAnAbsentContainerd: a shim that is to end does not wait for a
// containerd that has not taken the event before, and does for one that has.
func TestEventsOfAnAbsentContainerd(t *testing.T) {
	p := make(answering)
	f := newForwarder(context.Background(), p)
	for range 2 {
		f.send(&apievents.TaskStart{})
		p <- errors.New("nobody listens")
	}
	f.send(&apievents.TaskStart{}) // that of the first is noted when the second is given; nobody answers the third
	f.close(context.Background())
	if f.patience() != awayTimeout {
		t.Error("a containerd that is away is waited for as long as one that is not")
	}
	close(p)
	<-f.done
	if f.patience() != flushTimeout {
		t.Error("a containerd that has come back is not waited for")
	}
}

// TestEventThatIsNotTaken: nor does it for one that leaves the very first event
// unanswered.
func TestEventThatIsNotTaken(t *testing.T) {
	p := make(answering)
	f := newForwarder(context.Background(), p)
	f.send(&apievents.TaskStart{})
	for deadline := time.Now().Add(30 * time.Second); f.patience() != awayTimeout; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("an event that nobody takes is waited for as long as any")
		}
	}
	close(p)
	f.close(context.Background())
	if f.patience() != flushTimeout {
		t.Error("a containerd that has come back is not waited for")
	}
}
