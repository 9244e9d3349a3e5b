package vhostuser

import (
	"testing"
	"time"

	"github.com/applevm/applevm/vmm/internal/virtiotest"
)

// late is a device that answers when the test says so.
type late struct {
	queues []*Queue
	taken  chan Deferred
}

func (d *late) Features() uint64 { return 0 }
func (d *late) Queues() []*Queue { return d.queues }
func (d *late) Config() []byte   { return nil }

func (d *late) HandleQueue(i int) error {
	q := d.queues[i]
	if !q.Lock() {
		return nil
	}
	defer q.Unlock()
	for {
		c, err := q.Next()
		if err != nil || c == nil {
			return err
		}
		d.taken <- q.Defer(c)
	}
}

func serveLate(t *testing.T) (*virtiotest.Frontend, *late, *Server) {
	t.Helper()
	f, conn := virtiotest.NewFrontend(t)
	d := &late{[]*Queue{{}}, make(chan Deferred, 10)}
	s := NewServer(conn, d, func(err error) { t.Error(err) })
	ended := make(chan struct{})
	go func() {
		if err := s.Serve(); err != nil {
			t.Error(err)
		}
		close(ended)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended // also with unanswered buffers
	})
	f.Negotiate(all)
	return f, d, s
}

func TestDeferredBuffersAreAnsweredInAnyOrder(t *testing.T) {
	f, d, _ := serveLate(t)
	q := f.StartQueue(0, 0)
	request(q, 0, "a")
	request(q, 2, "b")
	q.Notify()
	a, b := <-d.taken, <-d.taken
	if err := d.queues[0].Complete(b, []byte("B")); err != nil {
		t.Error(err)
	}
	expect(t, q, 2, "B")
	f.SetMemory() // the old mapping is gone now
	if err := d.queues[0].Complete(a, []byte("A")); err != nil {
		t.Error(err)
	}
	expect(t, q, 0, "A")
}

// A guest's request must not be lost when its VMM pauses.
func TestStopWaitsForDeferredBuffers(t *testing.T) {
	f, d, _ := serveLate(t)
	q := f.StartQueue(0, 0)
	request(q, 0, "a")
	q.Notify()
	a := <-d.taken
	stopped := make(chan uint16)
	go func() { stopped <- q.Stop() }()
	select {
	case <-stopped:
		t.Fatal("the queue stopped before the answer")
	case <-time.After(50 * time.Millisecond):
	}
	if err := d.queues[0].Complete(a, []byte("A")); err != nil {
		t.Error(err)
	}
	if base := <-stopped; base != 1 {
		t.Errorf("stopped at %d", base)
	}
	expect(t, q, 0, "A")
}

// Whoever has ended the machine does not wait for a slow disk.
func TestCloseGivesDeferredBuffersUp(t *testing.T) {
	f, d, s := serveLate(t)
	q := f.StartQueue(0, 0)
	request(q, 0, "a")
	q.Notify()
	a := <-d.taken
	if err := f.Send(11, 0, virtiotest.State(0, 0)); err != nil { // GET_VRING_BASE, which waits
		t.Fatal(err)
	}
	_ = s.Close()
	if err := d.queues[0].Complete(a, []byte("A")); err != nil {
		t.Error(err)
	}
}

func TestChangedDescriptorsOfADeferredBuffer(t *testing.T) {
	f, d, _ := serveLate(t)
	q := f.StartQueue(0, 0)
	request(q, 0, "a")
	q.Notify()
	a := <-d.taken
	q.SetDesc(1, 1<<40, 100, descWrite, 0)
	if err := d.queues[0].Complete(a, []byte("A")); err == nil {
		t.Error("an answer outside of the guest's memory")
	}
}
