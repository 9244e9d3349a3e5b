package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/snapshotter"
	"github.com/applevm/applevm/snapshotter/daemon"
)

// startDaemon runs a daemon in this process until the test ends.
func startDaemon(t *testing.T, cfg config.Snapshotter) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- daemon.Run(ctx, cfg, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// makeRoot makes a root directory with one container's snapshot.
func makeRoot(t *testing.T, root string) {
	t.Helper()
	sn, err := snapshotter.New(t.Context(), root, snapshotter.Options{WritableSize: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sn.Prepare(t.Context(), "container", ""); err != nil {
		t.Fatal(err)
	}
	if err := sn.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestGC leaves garbage in a root directory as a killed process would and has
// it removed, with a daemon that uses the directory and without one.
func TestGC(t *testing.T) {
	t.Setenv(config.Env, "")
	for _, withDaemon := range []bool{false, true} {
		dir := shortdir.New(t)
		cfg := config.Default().Snapshotter
		cfg.Root, cfg.Address, cfg.ContainerdAddress = filepath.Join(dir, "root"), filepath.Join(dir, "s.sock"), filepath.Join(dir, "c.sock")
		makeRoot(t, cfg.Root)
		if withDaemon {
			startDaemon(t, cfg)
		}
		const size = 3 << 20
		garbage := []string{"layers/tmp-1.ext4", "layers/sha256-" + strings.Repeat("0", 64) + ".ext4", "snapshots/new-1/rw.img", "snapshots/999/rw.img"}
		for _, name := range garbage {
			path := filepath.Join(cfg.Root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			// It appears larger than it is.
			if err := os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, 1<<30); err != nil {
				t.Fatal(err)
			}
		}
		for i, want := range []int64{int64(len(garbage)) * size, 0} {
			out, err := output(t, "gc", "--root", cfg.Root, "--address", cfg.Address)
			if err != nil {
				t.Fatal(err)
			}
			m := regexp.MustCompile(`^freed (\d+) bytes \(.*\)\n$`).FindStringSubmatch(out)
			if m == nil {
				t.Fatalf("printed %q", out)
			}
			// The file system has its own blocks, for directories too.
			if n, _ := strconv.ParseInt(m[1], 10, 64); n < want || n > want+1<<20 {
				t.Errorf("daemon %v, run %d: freed %d bytes, want about %d", withDaemon, i, n, want)
			}
		}
		for _, name := range garbage {
			if _, err := os.Lstat(filepath.Join(cfg.Root, name)); err == nil {
				t.Errorf("daemon %v: %s is still there", withDaemon, name)
			}
		}
		if kept, _ := filepath.Glob(filepath.Join(cfg.Root, "snapshots", "*", "rw.img")); len(kept) != 1 {
			t.Errorf("daemon %v: writable images %q, want the container's", withDaemon, kept)
		}
	}
}

func TestGCRefuses(t *testing.T) {
	t.Setenv(config.Env, "")
	dir := shortdir.New(t)
	foreign := filepath.Join(dir, "layers", "precious")
	if err := os.MkdirAll(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := output(t, "gc", "--root", dir); err == nil || !strings.Contains(err.Error(), dir+" is no root directory") {
		t.Errorf("a directory of somebody else's: %v", err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("made in the directory: %q", got)
	}

	// The root is in use, and the daemon does not answer where it is looked for.
	root := filepath.Join(dir, "root")
	sn, err := snapshotter.New(t.Context(), root, snapshotter.Options{WritableSize: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sn.Close() }()
	if _, err := sn.Prepare(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s.sock")
	_, err = output(t, "gc", "--root", root, "--address", socket)
	if err == nil || !strings.Contains(err.Error(), root) || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "--address") {
		t.Errorf("no daemon answers: %v", err)
	}
}
