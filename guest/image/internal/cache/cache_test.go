package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestMakeFillsOnce(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var (
		fills atomic.Int32
		wg    sync.WaitGroup
	)
	for range 8 {
		wg.Go(func() {
			dir, err := Make(t.Context(), "a/b", func(dir string) error {
				fills.Add(1)
				return os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "x" {
				t.Errorf("entry is not whole: %q, %v", b, err)
			}
		})
	}
	wg.Wait()
	if n := fills.Load(); n != 1 {
		t.Errorf("filled %d times", n)
	}
}

func TestMakeLeavesNothingOfAFailure(t *testing.T) {
	base := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", base)
	fault := errors.New("fault")
	_, err := Make(t.Context(), "a", func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
			t.Error(err)
		}
		return fault
	})
	if !errors.Is(err, fault) {
		t.Errorf("error %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(base, "applevm", "a*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestMakeReplacesWhatAKilledProcessLeft(t *testing.T) {
	base := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", base)
	if err := os.MkdirAll(filepath.Join(base, "applevm", "a"+Partial, "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := Make(t.Context(), "a", func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("entry holds %v, error %v", left, err)
	}
}

func TestLockEndsWithContext(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	unlock, err := Lock(t.Context(), "l")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx, "l"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock that is held: error %v", err)
	}
	unlock()
	again, err := Lock(t.Context(), "l")
	if err != nil {
		t.Fatal(err)
	}
	again()
}
