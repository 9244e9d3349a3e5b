package agent

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// slowDisk answers requests when it is let: a disk that hangs cannot be had for real.
type slowDisk struct {
	mu   sync.Mutex
	made []uint
	let  chan error
}

func newSlowDisk() (*slowDisk, *freezer) {
	d := &slowDisk{let: make(chan error, 100)}
	return d, &freezer{request: func(request uint) error {
		d.mu.Lock()
		d.made = append(d.made, request)
		d.mu.Unlock()
		return <-d.let
	}}
}

func (d *slowDisk) requests() []uint {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.made)
}

// becomes waits until the requests are want and none is under way.
func (d *slowDisk) becomes(t *testing.T, f *freezer, want ...uint) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		busy := f.busy != nil
		f.mu.Unlock()
		if got := d.requests(); !busy && slices.Equal(got, want) {
			return
		} else if time.Now().After(end) {
			t.Fatalf("requests %x, want %x", got, want)
		}
	}
}

const (
	patient   = 2 * time.Minute
	impatient = time.Millisecond
)

func TestFreezeAndThaw(t *testing.T) {
	d, f := newSlowDisk()
	for range 4 {
		d.let <- nil
	}
	for _, step := range []func(time.Duration) error{f.thaw, f.freeze, f.freeze, f.thaw, f.thaw, f.freeze} {
		if err := step(patient); err != nil {
			t.Error(err)
		}
	}
	d.becomes(t, f, fiFreeze, fiThaw, fiFreeze)
}

// A freeze that comes too late does not stay: nobody would thaw.
func TestLateFreezeIsUndone(t *testing.T) {
	d, f := newSlowDisk()
	if err := f.freeze(impatient); !errors.Is(err, errSlow) {
		t.Errorf("freeze of a disk that hangs: %v", err)
	}
	d.let <- nil
	d.let <- nil
	d.becomes(t, f, fiFreeze, fiThaw)
}

// A thaw that nobody waits for comes about.
func TestLateThawComesAbout(t *testing.T) {
	d, f := newSlowDisk()
	d.let <- nil
	if err := f.freeze(patient); err != nil {
		t.Fatal(err)
	}
	if err := f.thaw(impatient); !errors.Is(err, errSlow) {
		t.Errorf("thaw of a disk that hangs: %v", err)
	}
	d.let <- nil
	d.becomes(t, f, fiFreeze, fiThaw)
	if err := f.thaw(impatient); err != nil {
		t.Error(err)
	}
}

// A container that is killed while its pause is under way is thawed.
func TestThawOvertakesAFreeze(t *testing.T) {
	d, f := newSlowDisk()
	frozen := make(chan error, 1)
	go func() { frozen <- f.freeze(patient) }()
	for len(d.requests()) == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := f.thaw(impatient); !errors.Is(err, errSlow) {
		t.Errorf("thaw: %v", err)
	}
	d.let <- nil
	d.let <- nil
	d.becomes(t, f, fiFreeze, fiThaw)
	if err := <-frozen; err == nil || !strings.Contains(err.Error(), "the opposite was asked for") {
		t.Errorf("freeze: %v", err)
	}
}

func TestFailedFreezeIsTold(t *testing.T) {
	d, f := newSlowDisk()
	gone := errors.New("the disk is gone")
	d.let <- gone
	if err := f.freeze(patient); !errors.Is(err, gone) {
		t.Errorf("freeze: %v", err)
	}
	d.let <- nil
	if err := f.freeze(patient); err != nil {
		t.Errorf("freeze after a failure: %v", err)
	}
	d.becomes(t, f, fiFreeze, fiFreeze)
}
