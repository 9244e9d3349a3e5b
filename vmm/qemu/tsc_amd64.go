package qemu

import "time"

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// measureTSC returns the counter's frequency in kHz. The kernel knows it but
// tells nobody (/proc/cpuinfo has the processor's clock, which varies).
// The error stays below 10 ppm: the clock is read to well within 200 ns.
func measureTSC() int {
	start, from := time.Now(), rdtsc()
	time.Sleep(20 * time.Millisecond)
	to, took := rdtsc(), time.Since(start)
	return int((to - from) * 1_000_000 / uint64(took.Nanoseconds()))
}
