//go:build (darwin && cgo) || vzsim

package vz

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vmmtest"
)

// TestSaveAndRestore: a machine goes on from a saved state, where it was.
func TestSaveAndRestore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	d := New()
	cfg := vmmtest.ConfigFor(vmmtest.Image(t), shortdir.New(t))
	g, err := vmmtest.StartGuest(ctx, d, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Kill() })
	if _, err := g.RoundTrips(ctx, 1, 100); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(t.TempDir(), "state")
	s := g.Machine.(vmm.Saver)
	if err := s.Save(ctx, state); err == nil || !strings.Contains(err.Error(), "not paused") {
		t.Errorf("save what runs: %v", err)
	}
	if _, err := os.Stat(state); err == nil {
		t.Error("a failure has left a directory")
	}
	if err := g.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(ctx, filepath.Join(state, "no", "directory")); err == nil {
		t.Error("saved to nowhere")
	}
	if err := s.Save(ctx, state); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(ctx, state); err == nil {
		t.Error("a state was overwritten")
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}

	start := func(change func(*vmm.Config)) (vmm.Machine, error) {
		t.Helper()
		cfg := cfg
		cfg.Dir, cfg.Restore = shortdir.New(t), state
		change(&cfg)
		m, err := d.New(cfg)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = m.Kill() })
		return m, m.Start(ctx)
	}
	if _, err := start(func(c *vmm.Config) { c.Memory += 64 << 20 }); err == nil {
		t.Error("restored with more memory")
	}
	if _, err := start(func(c *vmm.Config) { c.Restore += "2" }); err == nil || !strings.Contains(err.Error(), "state2") {
		t.Errorf("restored from nothing: %v", err)
	}
	m, err := start(func(*vmm.Config) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := (&vmmtest.Guest{Machine: m}).RoundTrips(ctx, 10, 1000); err != nil {
		t.Errorf("the guest does not go on: %v", err)
	}
}
