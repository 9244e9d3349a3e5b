//go:build (darwin && cgo) || vzsim

package vz

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A call that the framework never answers is given up: after its time, or with its caller.
func TestCallsThatAreNeverAnswered(t *testing.T) {
	never := make(chan struct{})
	t.Cleanup(func() { close(never) })
	unanswered := func() error { <-never; return nil }
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	refused := errors.New("refused")
	for _, tt := range []struct {
		name    string
		ctx     context.Context
		timeout time.Duration
		call    func() error
		want    string
	}{
		{"too late", t.Context(), 20 * time.Millisecond, unanswered, "the framework did not answer within 20ms"},
		{"given up", canceled, time.Hour, unanswered, "context canceled"},
		{"refused", t.Context(), time.Hour, func() error { return refused }, "refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := await(tt.ctx, tt.timeout, tt.call); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	if err := await(t.Context(), time.Hour, func() error { return nil }); err != nil {
		t.Errorf("a call that succeeds: %v", err)
	}
}
