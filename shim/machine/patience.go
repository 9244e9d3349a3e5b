package machine

import (
	"context"
	"sync"
	"time"

	"github.com/applevm/applevm/vmm"
)

// patience is by how many times a deadline is extended at the most.
const patience = 10

// patient returns a context that is canceled with cause when the guest has had
// timeout to answer. Time in which the host had no processor for the guest does
// not count: twenty machines that start at once share two. starved is the sum of
// that time. So a guest that is stopped, or waits for ever, is given up in time,
// however busy the host is.
func patient(ctx context.Context, timeout time.Duration, starved func() time.Duration, cause error) (context.Context, context.CancelFunc) {
	ctx, cancelMost := context.WithTimeoutCause(ctx, patience*timeout, cause)
	ctx, cancel := context.WithCancelCause(ctx)
	p := &patientTimer{starved: starved, left: timeout, expire: func() { cancel(cause) }}
	p.mu.Lock()
	// What was starved in the first half is not known: most calls end before they
	// would have to ask.
	p.arm(timeout / 2)
	p.mu.Unlock()
	return ctx, func() {
		p.stop()
		cancel(context.Canceled)
		cancelMost()
	}
}

type patientTimer struct {
	starved func() time.Duration
	expire  func()

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	left    time.Duration // of the deadline
	armed   time.Time
	asked   bool
	before  time.Duration // what was starved when asked last
}

// arm makes look be called after d.
func (p *patientTimer) arm(d time.Duration) {
	p.armed = time.Now()
	p.timer = time.AfterFunc(d, p.look)
}

func (p *patientTimer) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	now := p.starved()
	p.left -= time.Since(p.armed)
	if p.asked {
		p.left += max(0, min(now-p.before, time.Since(p.armed)))
	}
	p.asked, p.before = true, now
	// Less is not worth another look.
	if p.left < time.Millisecond {
		p.expire()
		return
	}
	p.arm(p.left)
}

func (p *patientTimer) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.timer.Stop()
}

// Patient returns a context that is canceled with cause when the machine's guest has
// had timeout, in which the host had a processor for it, to answer.
func (m *Machine) Patient(ctx context.Context, timeout time.Duration, cause error) (context.Context, context.CancelFunc) {
	return patient(ctx, timeout, m.starved, cause)
}

// starved is how long the guest has been without a processor that it could have
// used, as far as the driver can tell.
func (m *Machine) starved() time.Duration {
	if s, ok := m.vm.(vmm.Starver); ok {
		return s.Starved()
	}
	return 0
}
