//go:build unix

package imagelock

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestLocks(t *testing.T) {
	dir, locks := t.TempDir(), filepath.Join(t.TempDir(), "a", "b")
	image, link, other := filepath.Join(dir, "image"), filepath.Join(dir, "link"), filepath.Join(dir, "other")
	for _, err := range []error{os.WriteFile(image, nil, 0o600), os.WriteFile(other, nil, 0o600), os.Link(image, link)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	acquire := func(path string, shared bool) *Lock {
		t.Helper()
		l, err := Acquire(locks, path, shared)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	refused := func(path string, shared bool) {
		t.Helper()
		if _, err := Acquire(locks, path, shared); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s, shared: %v: %v", path, shared, err)
		}
	}
	writer := acquire(image, false)
	refused(image, false)
	refused(image, true)
	refused(link, true) // another name
	elsewhere := acquire(other, false)
	elsewhere.Release()
	writer.Release()
	one, two := acquire(image, true), acquire(link, true)
	refused(image, false)
	one.Release()
	refused(image, false)
	two.Release()
	acquire(image, false).Release()
	if left, err := os.ReadDir(locks); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := Acquire(locks, filepath.Join(dir, "nothing"), true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no image: %v", err)
	}
	// What a process left that was killed is no lock.
	held := acquire(image, false)
	_ = held.file.Close()
	acquire(image, false).Release()
}

// However many try at once, and however often the file goes, one has it.
func TestOneWriter(t *testing.T) {
	dir, locks := t.TempDir(), t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var held, got atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				l, err := Acquire(locks, image, false)
				if err != nil {
					if !errors.Is(err, ErrInUse) {
						t.Error(err)
					}
					continue
				}
				if held.Add(1) != 1 {
					t.Error("two have it")
				}
				got.Add(1)
				held.Add(-1)
				l.Release()
			}
		})
	}
	wg.Wait()
	if got.Load() == 0 {
		t.Error("nobody had it")
	}
}

// Readers come and go without being in each other's way.
func TestReaders(t *testing.T) {
	dir, locks := t.TempDir(), t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 300 {
				l, err := Acquire(locks, image, true)
				if err != nil {
					t.Error(err)
					return
				}
				l.Release()
			}
		})
	}
	wg.Wait()
}
