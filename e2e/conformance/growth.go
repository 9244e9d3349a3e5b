package main

import (
	"errors"
	"fmt"
)

// sample is what there is of a run at one moment.
type sample struct {
	shims, others int   // processes
	shimRSS       int64 // bytes, all shims together
	otherRSS      int64 // bytes, of the process that has most: a VMM
	fds, sockets  int   // of the shims
	threads       int   // of the shims
	mounts        int   // below the run's directory
	unixSockets   int   // bound below the run's directory
}

const (
	// rssSlack is how far a shim's memory may be above that of an earlier part of
	// the run, in bytes: Go's heap breathes.
	rssSlack = 24 << 20
	// maxVMM bounds a VMM's memory in bytes: its guest's, 512 MiB by default, and
	// some for itself. A guest fills its page cache, so that growth says nothing.
	maxVMM = 640 << 20
	// minSamples are too few to tell growth from chance.
	minSamples = 12
)

// metrics are what must not grow. The least of a part of the run counts, which is
// what remains when nothing is under way.
var metrics = []struct {
	name  string
	slack int64
	of    func(sample) int64
}{
	{"shims", 0, func(s sample) int64 { return int64(s.shims) }},
	{"processes of machines", 0, func(s sample) int64 { return int64(s.others) }},
	{"the shims' resident memory in bytes", rssSlack, func(s sample) int64 { return s.shimRSS }},
	{"the shims' file descriptors", 4, func(s sample) int64 { return int64(s.fds) }},
	{"the shims' sockets", 2, func(s sample) int64 { return int64(s.sockets) }},
	{"the shims' threads", 8, func(s sample) int64 { return int64(s.threads) }},
	{"mounts", 0, func(s sample) int64 { return int64(s.mounts) }},
	{"bound sockets", 0, func(s sample) int64 { return int64(s.unixSockets) }},
}

// grown compares the last quarter of a run with its second; the first is warming up.
func grown(all []sample) error {
	n := len(all)
	if n < minSamples {
		return fmt.Errorf("the stress was too short to tell whether something grows: %d samples, %d needed", n, minSamples)
	}
	early, late := all[n/4:n/2], all[n*3/4:]
	var errs []error
	for _, m := range metrics {
		from, to := least(early, m.of), least(late, m.of)
		if to > from+m.slack {
			errs = append(errs, fmt.Errorf("%s grew from %d to %d", m.name, from, to))
		}
	}
	for _, s := range all {
		if s.otherRSS > maxVMM {
			errs = append(errs, fmt.Errorf("a machine took %d bytes, more than %d", s.otherRSS, int64(maxVMM)))
			break
		}
	}
	return errors.Join(errs...)
}

func least(list []sample, of func(sample) int64) int64 {
	v := of(list[0])
	for _, s := range list {
		v = min(v, of(s))
	}
	return v
}

// describe sums samples up in a line.
func describe(all []sample) string {
	if len(all) == 0 {
		return "no samples"
	}
	var most sample
	for _, s := range all {
		most.shimRSS, most.otherRSS = max(most.shimRSS, s.shimRSS), max(most.otherRSS, s.otherRSS)
		most.fds, most.threads = max(most.fds, s.fds), max(most.threads, s.threads)
	}
	return fmt.Sprintf("%d samples; at the most: shims %d MiB, %d descriptors, %d threads; a machine %d MiB",
		len(all), most.shimRSS>>20, most.fds, most.threads, most.otherRSS>>20)
}
