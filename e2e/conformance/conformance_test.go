package main

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	r := parse(`=== RUN   TestShim
--- FAIL: TestShim (1.00s)
    --- PASS: TestShim/Lifecycle (1.00s)
    --- PASS: TestShim/InitExitCodes (1.00s)
        --- PASS: TestShim/InitExitCodes/Exit0 (1.00s)
        --- PASS: TestShim/InitExitCodes/Exit1 (1.00s)
    --- FAIL: TestShim/Events (1.00s)
    --- SKIP: TestShim/HundredLayers (0.00s)
    --- SKIP: TestShim/uds (0.00s)
FAIL
`)
	if r.passed != 3 {
		t.Errorf("%d passed", r.passed)
	}
	if !slices.Equal(r.failed, []string{"TestShim", "TestShim/Events"}) {
		t.Errorf("failed: %v", r.failed)
	}
	if !slices.Equal(r.skipped, []string{"TestShim/HundredLayers"}) {
		t.Errorf("skipped: %v", r.skipped)
	}
}

func TestOnlyTimed(t *testing.T) {
	const late = "TestShim/exec/ExecOutputDrainAfterExit"
	for _, tt := range []struct {
		name         string
		failed, want []string
	}{
		{"none", nil, nil},
		{"late", []string{"TestShim", "TestShim/exec", late}, []string{late}},
		{"another too", []string{"TestShim", "TestShim/exec", late, "TestShim/exec/Wait"}, nil},
		{"another alone", []string{"TestShim", "TestShim/exec"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := onlyTimed(tt.failed); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	if got := pattern(late); got != "^TestShim$/^exec$/^ExecOutputDrainAfterExit$" {
		t.Errorf("pattern %s", got)
	}
}

func TestGrown(t *testing.T) {
	steady := func(i int) sample {
		// A container comes and goes, the heap breathes.
		return sample{shims: 1 + i%2, others: 1 + i%2, shimRSS: 20<<20 + int64(i%7)<<20, otherRSS: 100<<20 + int64(i)<<20, fds: 20 + 8*(i%4), sockets: 10, threads: 12}
	}
	for _, tc := range []struct {
		name   string
		change func(i int, s *sample)
		want   string
	}{
		{"steady", func(int, *sample) {}, ""},
		{"warming up", func(i int, s *sample) { s.shimRSS += int64(min(i, 20)) << 21; s.fds += min(i, 20) }, ""},
		{"descriptors", func(i int, s *sample) { s.fds += i / 4 }, "file descriptors grew"},
		{"memory", func(i int, s *sample) { s.shimRSS += int64(i) << 20 }, "resident memory in bytes grew"},
		{"shims", func(i int, s *sample) { s.shims += i / 30 }, "shims grew"},
		{"machines", func(i int, s *sample) { s.others += i / 30 }, "processes of machines grew"},
		{"mounts", func(i int, s *sample) { s.mounts += i / 30 }, "mounts grew"},
		{"sockets", func(i int, s *sample) { s.unixSockets += i / 30 }, "bound sockets grew"},
		{"a large machine", func(i int, s *sample) { s.otherRSS *= 5 }, "a machine took"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var all []sample
			for i := range 100 {
				s := steady(i)
				tc.change(i, &s)
				all = append(all, s)
			}
			err := grown(all)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if err := grown(make([]sample, minSamples-1)); err == nil {
		t.Error("too few samples are taken for a proof")
	}
}
