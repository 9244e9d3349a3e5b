// Package clock keeps a guest's wall clock at the host's.
//
// A guest counts time by its own timers, which drift, and which stand still or not
// while its machine is stopped or the host sleeps. So the host asks for the guest's
// time, now and then and whenever it has reason to, takes half the round trip for
// the way of the answer, as SNTP does (RFC 4330, section 5), and has the guest correct
// what is beyond doubt: at once if much, by a rate if little.
package clock

import (
	"context"
	"time"
)

// Ask shifts the guest's clock by shift, gradually if slew, and returns what it shows
// then. It may take as long as the guest does: one that is stopped answers when it
// runs on, and that is when its clock has to be looked at.
type Ask func(ctx context.Context, shift time.Duration, slew bool) (time.Time, error)

const (
	// stepFrom is the error from which on the clock is set at once. Less is slewed, at
	// 500 ppm (adjtimex(2), ADJ_OFFSET_SINGLESHOT): 5 ms take 10 seconds.
	stepFrom = 5 * time.Millisecond
	// fine is an error that is left alone.
	fine = 500 * time.Microsecond
	// sure is an uncertainty that needs no further try, of tries at most.
	sure  = time.Millisecond
	tries = 8
	// rounds is how many times a check sets the clock and looks again.
	rounds = 3

	// A check follows the last after minPause; after twice as long each time, up to
	// maxPause, as long as the clock is good.
	minPause = time.Second
	maxPause = 16 * time.Second
	good     = 2 * time.Millisecond

	// lookPause is the time between two looks at the host's own clocks, moved what they
	// may move apart in it, late how much later the look may come.
	lookPause = time.Second
	moved     = time.Millisecond
	late      = time.Second
)

// reading is the host's time: the wall clock's and the one that only counts on.
type reading struct {
	wall time.Time
	mono time.Duration
}

// since returns by how much both have gone on since r.
func (now reading) since(r reading) (wall, mono time.Duration) {
	return now.wall.Sub(r.wall), now.mono - r.mono
}

var started = time.Now()

func hostClock() reading {
	t := time.Now()
	return reading{wall: t.Round(0), mono: t.Sub(started)}
}

// Keeper keeps one guest's clock.
type Keeper struct {
	ask  Ask
	host func() reading
	wake chan struct{}
	set  chan struct{} // closed when the first check is over
}

// New returns a Keeper that does nothing before Run.
func New(ask Ask) *Keeper {
	return &Keeper{ask: ask, host: hostClock, wake: make(chan struct{}, 1), set: make(chan struct{})}
}

// Check has the clock checked soon.
func (k *Keeper) Check() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Set is closed when the clock has been checked for the first time.
func (k *Keeper) Set() <-chan struct{} { return k.set }

// Run keeps the clock until ctx ends. It reports each check that has failed, and by
// how much the clock was set.
func (k *Keeper) Run(ctx context.Context, report func(set time.Duration, err error)) {
	pause := minPause
	for first := true; ; first = false {
		off, set, err := k.check(ctx)
		if first {
			close(k.set)
		}
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil:
			pause = maxPause
			report(0, err)
		case off.Abs() > good:
			pause = minPause
		default:
			pause = min(2*pause, maxPause)
		}
		if set != 0 {
			report(set, nil)
		}
		if !k.wait(ctx, pause) {
			return
		}
	}
}

// wait returns true when it is time for a check: after pause, when Check was called,
// when the host's wall clock was set or stood still, as it does while the host
// sleeps, or when this process was stopped. It returns false when ctx has ended.
func (k *Keeper) wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(lookPause)
	defer timer.Stop()
	for last, waited := k.host(), time.Duration(0); waited < pause; {
		select {
		case <-timer.C:
			timer.Reset(lookPause)
		case <-k.wake:
			return true
		case <-ctx.Done():
			return false
		}
		now := k.host()
		wall, mono := now.since(last)
		if (wall-mono).Abs() > moved || mono > lookPause+late {
			return true
		}
		last, waited = now, waited+mono
	}
	return true
}

// check corrects the clock. It returns how far off it was found last, and by how
// much it was set at once.
func (k *Keeper) check(ctx context.Context) (off, set time.Duration, _ error) {
	for range rounds {
		s, err := k.measure(ctx)
		if err != nil {
			return 0, set, err
		}
		off = s.offset
		switch {
		case off.Abs() <= max(s.uncertainty, fine):
			return off, set, nil
		case off.Abs() < stepFrom:
			_, err := k.ask(ctx, -off, true)
			return off, set, err
		}
		if _, err := k.ask(ctx, -off, false); err != nil {
			return off, set, err
		}
		set -= off
	}
	return off, set, nil
}

// sample is one look at the guest's clock: it is ahead of the host's by offset, give
// or take uncertainty.
type sample struct{ offset, uncertainty time.Duration }

// measure takes the best of a few looks.
func (k *Keeper) measure(ctx context.Context) (best sample, _ error) {
	for i := range tries {
		before := k.host()
		guest, err := k.ask(ctx, 0, false)
		if err != nil {
			return sample{}, err
		}
		wall, trip := k.host().since(before)
		if i > 0 && (wall-trip).Abs() > moved {
			continue // the host's clock was set meanwhile
		}
		s := sample{offset: guest.Sub(before.wall.Add(trip / 2)), uncertainty: trip / 2}
		if i == 0 || s.uncertainty < best.uncertainty {
			best = s
		}
		if best.uncertainty <= sure {
			break
		}
	}
	return best, nil
}
