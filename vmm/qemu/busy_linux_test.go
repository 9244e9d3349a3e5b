package qemu

import "testing"

func TestTooManyThreads(t *testing.T) {
	tests := []struct {
		loadavg string
		want    bool
	}{
		{"0.10 0.20 0.30 1/200 4711\n", false},
		{"5.90 0.20 0.30 5/200 4711\n", false},
		{"6.00 0.20 0.30 1/200 4711\n", true},
		{"0.10 9.00 9.00 6/200 4711\n", true},
		{"", false},
		{"x y", false},
	}
	for _, tt := range tests {
		if got := tooManyThreads(tt.loadavg, 2); got != tt.want {
			t.Errorf("%q: %v", tt.loadavg, got)
		}
	}
}
