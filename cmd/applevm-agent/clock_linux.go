//go:build cgo

package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock to %s: %w", t.UTC().Format(time.RFC3339), err)
	}
	return nil
}

// Modes of adjtimex(2) that x/sys/unix lacks (linux/timex.h).
const (
	adjSetOffset        = 0x0100
	adjNano             = 0x2000
	adjOffsetSingleshot = 0x8001
)

// shiftClock puts the clock forward by d: at once, and then a slew that is not over
// ends, or at the rate of adjtime(3).
func shiftClock(d time.Duration, slew bool) error {
	tx := unix.Timex{Modes: adjOffsetSingleshot}
	if slew {
		tx.Offset = d.Microseconds()
	}
	if err := adjust(&tx, d); err != nil || slew {
		return err
	}
	// The nanoseconds are to be positive, also of a negative time.
	seconds := d / time.Second
	if d%time.Second < 0 {
		seconds--
	}
	tx = unix.Timex{Modes: adjSetOffset | adjNano}
	tx.Time.Sec, tx.Time.Usec = int64(seconds), int64(d-seconds*time.Second)
	return adjust(&tx, d)
}

func adjust(tx *unix.Timex, d time.Duration) error {
	if _, err := unix.Adjtimex(tx); err != nil {
		return fmt.Errorf("put the clock forward by %v: %w", d, err)
	}
	return nil
}
