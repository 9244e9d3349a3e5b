package clock

import (
	"context"
	"errors"
	"testing"
	"time"
)

// world is a host and a guest whose clocks are under control, with a way between them
// that takes there and back, the way of each try in turn.
type world struct {
	now     time.Duration // monotonic
	wall    time.Duration // how far the host's wall clock is from it
	guest   time.Duration // how far the guest's clock is from it
	ways    [][2]time.Duration
	asked   int
	slewed  time.Duration // the last slew
	stepped time.Duration // all steps
	fail    error
}

var epoch = time.Unix(1_800_000_000, 0)

func (w *world) keeper() *Keeper {
	k := New(w.ask)
	k.host = func() reading { return reading{wall: epoch.Add(w.now + w.wall), mono: w.now} }
	return k
}

func (w *world) ask(_ context.Context, shift time.Duration, slew bool) (time.Time, error) {
	if w.fail != nil {
		return time.Time{}, w.fail
	}
	way := w.ways[w.asked%len(w.ways)]
	w.asked++
	w.now += way[0]
	switch {
	case slew:
		w.slewed = shift
	default:
		w.guest += shift
		w.stepped += shift
	}
	shows := epoch.Add(w.now + w.guest)
	w.now += way[1]
	return shows, nil
}

const ms = time.Millisecond

func TestCheck(t *testing.T) {
	quick := [][2]time.Duration{{ms / 10, ms / 10}}
	for _, tt := range []struct {
		name  string
		world world
		guest time.Duration // where its clock is to be, from the host's
		most  time.Duration // and how far it may be from there
		slew  time.Duration
	}{
		{"right", world{ways: quick}, 0, 0, 0},
		{"a bit off is left alone", world{guest: ms / 3, ways: quick}, ms / 3, 0, 0},
		{"a little behind is slewed", world{guest: -3 * ms, ways: quick}, -3 * ms, 0, 3 * ms},
		{"a little ahead is slewed", world{guest: 3 * ms, ways: quick}, 3 * ms, 0, -3 * ms},
		{"far behind is set", world{guest: -time.Hour, ways: quick}, 0, 0, 0},
		{"far ahead is set", world{guest: 30 * ms, ways: quick}, 0, 0, 0},
		{"the host's wall clock counts", world{wall: time.Hour, ways: quick}, 0, 0, 0},
		{"decades", world{guest: -50 * 365 * 24 * time.Hour, ways: quick}, 0, 0, 0},
		// All of the way is one of the two: half the round trip is the worst guess.
		{"a one-sided way", world{guest: time.Second, ways: [][2]time.Duration{{8 * ms, 0}}}, 0, 4 * ms, 0},
		{"what the way may explain is left alone", world{guest: 9 * ms, ways: [][2]time.Duration{{20 * ms, 20 * ms}}}, 9 * ms, 0, 0},
		{"the best try counts", world{guest: 20 * ms, ways: [][2]time.Duration{{90 * ms, 0}, {0, 90 * ms}, {ms, 3 * ms}}}, 0, 2 * ms, 0},
		// The answer of a guest that was stopped says nothing; the next does.
		{"a stop", world{guest: -time.Minute, ways: [][2]time.Duration{{time.Minute, 0}, {ms / 10, ms / 10}}}, 0, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := tt.world
			if _, _, err := w.keeper().check(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := w.guest - w.wall; (got - tt.guest).Abs() > tt.most {
				t.Errorf("the guest's clock is off by %v, want %v", got, tt.guest)
			}
			if w.slewed != tt.slew {
				t.Errorf("slewed by %v, want %v", w.slewed, tt.slew)
			}
		})
	}
}

// A guest may say anything, and fail.
func TestCheckOfABadGuest(t *testing.T) {
	n := 0
	k := New(func(context.Context, time.Duration, bool) (time.Time, error) {
		n++
		return time.Unix(0, -1<<63), nil
	})
	if _, _, err := k.check(t.Context()); err != nil || n > rounds*(tries+1) {
		t.Errorf("%d requests, %v", n, err)
	}
	broken := errors.New("broken")
	w := world{fail: broken}
	if _, _, err := w.keeper().check(t.Context()); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

// The clock is looked at at once, and then when asked for.
func TestRun(t *testing.T) {
	asked := make(chan struct{})
	k := New(func(ctx context.Context, _ time.Duration, _ bool) (time.Time, error) {
		select {
		case asked <- struct{}{}:
		case <-ctx.Done():
		}
		return time.Now(), ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.Run(ctx, func(set time.Duration, err error) { t.Errorf("set by %v, %v", set, err) })
	}()
	<-asked
	<-k.Set()
	k.Check()
	<-asked
	cancel()
	<-done
}

// What makes a check due before its time.
func TestWait(t *testing.T) {
	for _, tt := range []struct {
		name       string
		wall, mono time.Duration // by how much they go on in one look's time
		looks      int
	}{
		{"nothing", lookPause, lookPause, 5},
		{"the wall clock is set", lookPause - time.Hour, lookPause, 1},
		{"the wall clock is set by little", lookPause + 2*ms, lookPause, 1},
		{"the host slept", lookPause + time.Hour, lookPause, 1},
		{"this process was stopped", lookPause + time.Minute, lookPause + time.Minute, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, looks := reading{wall: epoch}, -1
			k := New(nil)
			k.host = func() reading {
				looks++
				if looks > 0 {
					r = reading{r.wall.Add(tt.wall), r.mono + tt.mono}
				}
				return r
			}
			if !k.wait(t.Context(), 5*lookPause) || looks != tt.looks {
				t.Errorf("%d looks, want %d", looks, tt.looks)
			}
		})
	}
}
