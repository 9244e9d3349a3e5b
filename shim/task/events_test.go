package task

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/applevm/applevm/shim/publish"
)

// answering is a publisher whose every answer the test gives.
type answering chan error

func (a answering) Forward(context.Context, *types.Envelope) error { return <-a }
func (a answering) Close() error                                   { return nil }

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after 30 s", what)
		}
	}
}

// TestEventsOfAnAbsentContainerd: a shim that is to end does not wait for a
// containerd that has not taken the last attempt, and does for one that has.
func TestEventsOfAnAbsentContainerd(t *testing.T) {
	p := make(answering)
	f := newForwarder(context.Background(), "ns", p)
	f.send(&apievents.TaskStart{})
	for range 2 {
		p <- errors.New("nobody listens")
	}
	eventually(t, "a containerd that is away is not waited for as long as one that is not",
		func() bool { return f.patience() == awayTimeout })
	close(p)
	eventually(t, "a containerd that has come back is waited for", func() bool { return f.patience() == flushTimeout })
	f.close(context.Background())
	<-f.done
}

// TestEventThatIsNotTaken: nor does it for one that leaves the very first event
// unanswered.
func TestEventThatIsNotTaken(t *testing.T) {
	p := make(answering)
	f := newForwarder(context.Background(), "ns", p)
	f.send(&apievents.TaskStart{})
	eventually(t, "an event that nobody takes is not waited for as long as any",
		func() bool { return f.patience() == awayTimeout })
	close(p)
	f.close(context.Background())
	if f.patience() != flushTimeout {
		t.Error("a containerd that has come back is not waited for")
	}
}

// containerd takes events over ttrpc, as the real one does.
type containerd struct {
	refuse string // the identifier of an exec whose start it refuses
	mu     sync.Mutex
	got    []string
	times  []time.Time
	again  int // how many came a second time: their answer was cut off
}

func (c *containerd) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	var e apievents.TaskExecStarted
	if err := typeurl.UnmarshalTo(r.Envelope.Event, &e); err != nil {
		return nil, err
	}
	if e.ExecID == c.refuse {
		return nil, errgrpc.ToGRPC(errdefs.ErrInvalidArgument)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	name := r.Envelope.Namespace + r.Envelope.Topic + "/" + e.ExecID
	if len(c.got) > 0 && c.got[len(c.got)-1] == name {
		c.again++
		return &emptypb.Empty{}, nil
	}
	c.got = append(c.got, name)
	c.times = append(c.times, r.Envelope.Timestamp.AsTime())
	return &emptypb.Empty{}, nil
}

func (c *containerd) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got)
}

// serve serves on a socket until stop, which ends the connections too.
func (c *containerd) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(srv, c)
	go func() { _ = srv.Serve(context.Background(), l) }()
	return func() {
		_ = l.Close() // the server may not have it yet
		_ = srv.Close()
	}
}

// TestEventsOutliveContainerd: what happens while containerd is away it hears when
// it is back, each event once (but for one whose answer was cut off), in order and with the time at which it happened, however
// many they are and however long it takes; one that it refuses holds up no other.
func TestEventsOutliveContainerd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	p, err := publish.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	f := newForwarder(context.Background(), "ns", p)
	const (
		absences = 3
		each     = 500
	)
	c := &containerd{refuse: "refused"}
	var sent []time.Time
	for absence := range absences {
		stop := c.serve(t, socket)
		eventually(t, "the events come", func() bool { return c.count() == absence*each })
		f.send(&apievents.TaskExecStarted{ExecID: "refused"})
		stop()
		for i := range each {
			sent = append(sent, time.Now())
			f.send(&apievents.TaskExecStarted{ExecID: fmt.Sprint(absence*each + i)})
		}
		if c.count() == (absence+1)*each {
			t.Fatal("events came while nobody served")
		}
	}
	back := time.Now()
	stop := c.serve(t, socket)
	defer stop()
	eventually(t, "the last events come", func() bool { return c.count() == absences*each })
	f.close(context.Background())
	for i, got := range c.got {
		if want := fmt.Sprintf("ns/tasks/exec-started/%d", i); got != want {
			t.Fatalf("event %d is %s, want %s", i, got, want)
		}
		if at := c.times[i]; at.Before(sent[i].Add(-time.Millisecond)) || at.After(back) {
			t.Errorf("event %d of %v says %v", i, sent[i], at)
		}
	}
	if len(c.got) != absences*each || c.again > absences {
		t.Errorf("%d events, want %d; %d came twice", len(c.got), absences*each, c.again)
	}
}
