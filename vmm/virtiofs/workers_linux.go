package virtiofs

import (
	"fmt"
	"sync/atomic"
	"time"
)

const (
	// maxWorkers is how many requests are executed at a time, the one that HandleQueue
	// executes aside. Each holds at most maxRequest and maxAnswer bytes.
	maxWorkers = 8
	// patience is how long a request may take before others do not wait for it any more.
	patience = 5 * time.Millisecond
	// poll is how often the queue is looked at then: kicks are not heard.
	poll = time.Millisecond
	// rest is for how long there must be no request before nobody looks any more.
	rest = 200 * time.Millisecond
)

// lane is what works on one queue.
//
// A request is executed where the guest's kick is heard: waking another goroutine for it
// takes longer than most requests do. One that has to wait for the host's disk, or for ever,
// must hold up no other. So somebody watches, and has workers go on without it; and
// where requests come faster than they are answered, workers help.
type lane struct {
	began atomic.Int64 // when HandleQueue has begun its request, as time.Since(start); 0 if it has none
	last  atomic.Int64 // the same of its last one

	// Both are guarded by Device.mu.
	workers int
	polling bool // one of them looks for requests whose kicks are not heard
}

var start = time.Now()

// HandleQueue implements vhostuser.Device.
func (d *Device) HandleQueue(i int) error {
	l := &d.lanes[i]
	for {
		r, more := d.next(i)
		if r == nil {
			return nil
		}
		now := int64(time.Since(start))
		l.last.Store(now)
		l.began.Store(now)
		d.mu.Lock()
		d.active++
		if more {
			d.startWorker(i)
		}
		if !d.watching {
			d.watching = true
			go d.watch()
		}
		d.mu.Unlock()
		d.do(r)
		l.began.Store(0)
		d.done()
	}
}

func (d *Device) next(i int) (r *request, more bool) {
	r, more, err := d.take(d.queues[i])
	if err != nil {
		d.report(fmt.Errorf("shared directory: %w", err))
	}
	return r, more
}

func (d *Device) done() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active--
	d.idle.Broadcast()
}

// stuck tells whether HandleQueue does not hear kicks.
func (l *lane) stuck() bool {
	began := l.began.Load()
	return began != 0 && time.Since(start)-time.Duration(began) > patience
}

// watch has others work where HandleQueue's request takes long, until there was none for a
// while.
func (d *Device) watch() {
	tick := time.NewTicker(patience)
	defer tick.Stop()
	for range tick.C {
		quiet := true
		d.mu.Lock()
		for i := range d.lanes {
			l := &d.lanes[i]
			if l.stuck() && !l.polling {
				d.startWorker(i)
			}
			quiet = quiet && l.began.Load() == 0 && time.Since(start)-time.Duration(l.last.Load()) > rest
		}
		if quiet {
			d.watching = false
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
	}
}

// startWorker adds a worker if one more is allowed. The caller holds d.mu.
func (d *Device) startWorker(i int) {
	if d.lanes[i].workers < maxWorkers {
		d.lanes[i].workers++
		go d.work(i)
	}
}

// work executes requests until there are no more. As long as HandleQueue does not hear of
// new ones, one of the workers goes on looking for them.
func (d *Device) work(i int) {
	l := &d.lanes[i]
	looks := false // it is the one
	for {
		r, more := d.next(i)
		d.mu.Lock()
		if r == nil && l.stuck() && (looks || !l.polling) {
			looks, l.polling = true, true
			d.mu.Unlock()
			time.Sleep(poll)
			continue
		}
		if looks {
			looks, l.polling = false, false
		}
		if r == nil {
			l.workers--
			d.mu.Unlock()
			return
		}
		if more || l.stuck() {
			d.startWorker(i) // this request may take long, too
		}
		d.active++
		d.mu.Unlock()
		d.do(r)
		d.done()
	}
}
