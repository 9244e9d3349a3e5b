package qemu

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/applevm/applevm/vmm"
)

func TestTurns(t *testing.T) {
	drv := &driver{cache: cache{t.TempDir()}}
	if err := os.Chmod(drv.cache.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	take := func(m *machine) chan error {
		done := make(chan error, 1)
		go func() { done <- m.takeTurn(t.Context()) }()
		return done
	}
	wait := func(done chan error) error {
		t.Helper()
		select {
		case err := <-done:
			return err
		case <-time.After(2 * time.Minute):
			t.Fatal("no turn")
			return nil
		}
	}
	var booting []*machine
	for range runtime.NumCPU() {
		m := newMachine(drv, vmm.Config{})
		if err := wait(take(m)); err != nil {
			t.Fatal(err)
		}
		booting = append(booting, m)
	}
	next, killed := newMachine(drv, vmm.Config{}), newMachine(drv, vmm.Config{})
	got, gotKilled := take(next), take(killed)
	select {
	case err := <-got:
		t.Fatalf("one more than there are processors: %v", err)
	case <-time.After(4 * turnInterval):
	}
	_ = killed.ask()
	if err := wait(gotKilled); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("a machine that is killed while it waits: %v", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newMachine(drv, vmm.Config{}).takeTurn(canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	// The guest calls: the next may boot.
	l := &firstCall{callers{}, booting[0]}
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := wait(got); err != nil {
		t.Error(err)
	}
	booting[0].endTurn() // twice does no harm
}

// callers is a listener that has a caller at once.
type callers struct{ net.Listener }

func (callers) Accept() (net.Conn, error) {
	c, _ := net.Pipe()
	return c, nil
}
