package machine

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
)

// A guest that does not read holds up no call, and only so many requests wait for it.
func TestCallsToAGuestThatDoesNotRead(t *testing.T) {
	m := &Machine{}
	reads := make(chan struct{})
	stuck := func(context.Context, *ttrpc.Request, *ttrpc.Response) error {
		<-reads
		return nil
	}
	call := func(invoke ttrpc.Invoker) error {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return m.Call(ctx, 0, func(ctx context.Context) error {
			return m.bounded(ctx, nil, &ttrpc.Response{}, nil, invoke)
		})
	}
	for range maxUnsent {
		if err := call(stuck); !errors.Is(err, context.Canceled) {
			t.Fatalf("a call that was given up: %v", err)
		}
	}
	if err := call(stuck); !errdefs.IsUnavailable(err) || err.Error() != errUnsent.Error() {
		t.Errorf("a call beyond: %v", err)
	}
	close(reads)
	for end := time.Now().Add(2 * time.Minute); m.unsent.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("requests wait though the guest reads")
		}
	}
	ok := func(context.Context, *ttrpc.Request, *ttrpc.Response) error { return nil }
	if err := m.bounded(t.Context(), nil, &ttrpc.Response{}, nil, ok); err != nil {
		t.Errorf("a call to a guest that reads again: %v", err)
	}
}
