// Package settle gathers changes of files for a moment before they are told: who writes a file makes
// several.
package settle

import (
	"context"
	"time"
)

const (
	// MaxPending is how many changes may wait to be told.
	MaxPending = 16 << 10
	// MaxChanges is how many should be told at once.
	MaxChanges = 256
	// settleFor is how long changes are gathered.
	settleFor = 10 * time.Millisecond
)

// Queue has changes at places, in the order in which they came, each place once. All methods but Wake
// and Wait need the same lock.
type Queue[P comparable] struct {
	pending map[P]change
	order   []P // of pending
	lost    int
	wake    chan struct{}
}

type change struct {
	mask uint32
	due  time.Time // when it is told
}

// New returns an empty queue.
func New[P comparable]() *Queue[P] {
	return &Queue[P]{pending: map[P]change{}, wake: make(chan struct{}, 1)}
}

// Add adds a change; mask says of what kind, and is added to that of one that waits already.
func (q *Queue[P]) Add(p P, mask uint32) {
	c, ok := q.pending[p]
	switch {
	case ok:
		c.mask |= mask
	case len(q.pending) >= MaxPending:
		q.lost++
		return
	default:
		c = change{mask, time.Now().Add(settleFor)}
		q.order = append(q.order, p)
	}
	q.pending[p] = c
}

// Lose notes that a change was lost.
func (q *Queue[P]) Lose() { q.lost++ }

// Take calls tell for the changes that are due, which returns false if it is not to be told now. It
// returns how many were lost, and when the next is due, if one is.
func (q *Queue[P]) Take(tell func(p P, mask uint32) bool) (lost int, next time.Time) {
	lost, q.lost = q.lost, 0
	now := time.Now()
	order := q.order
	q.order = nil
	for _, p := range order {
		c := q.pending[p]
		delete(q.pending, p) // tell may add it again
		if c.due.After(now) || !tell(p, c.mask) {
			q.pending[p] = c
			q.order = append(q.order, p)
		}
	}
	for _, c := range q.pending {
		if next.IsZero() || c.due.Before(next) {
			next = c.due
		}
	}
	return lost, next
}

// Wake has Wait look again.
func (q *Queue[P]) Wake() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Wait calls take until it has taken something, whenever there may be something, or until ctx ends, whose
// error it returns then. take returns when the next change is due, too. One caller at a time.
func (q *Queue[P]) Wait(ctx context.Context, take func() (taken bool, next time.Time)) error {
	for {
		taken, next := take()
		if taken {
			return nil
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.wake:
		case <-timer:
		}
	}
}
