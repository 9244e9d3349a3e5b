package machine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPatient(t *testing.T) {
	late := errors.New("late")
	tests := []struct {
		name string
		// share of the time in which the guest has no processor
		share float64
		// from, to bound the time until the context ends
		from, to time.Duration
	}{
		{"an idle host", 0, 10 * time.Second, 11 * time.Second},
		// The first half counts whole.
		{"half of the time", 0.5, 14 * time.Second, 16 * time.Second},
		{"nine tenths of the time", 0.9, 50 * time.Second, 60 * time.Second},
		{"never a processor", 1, 100 * time.Second, 101 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				starved := func() time.Duration { return time.Duration(float64(time.Since(began)) * tt.share) }
				ctx, cancel := patient(t.Context(), 10*time.Second, starved, late)
				defer cancel()
				<-ctx.Done()
				if took := time.Since(began); took < tt.from || took > tt.to {
					t.Errorf("ended after %v", took)
				}
				if err := context.Cause(ctx); !errors.Is(err, late) {
					t.Errorf("ended by %v", err)
				}
			})
		})
	}
	t.Run("canceled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := patient(t.Context(), 10*time.Second, func() time.Duration { t.Error("asked"); return 0 }, late)
			cancel()
			if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("ended by %v", err)
			}
			time.Sleep(time.Minute)
		})
	})
}
