// Package cache keeps what is slow to fetch or build outside the checkout, so
// that clean clones and several checkouts share it. Entries are directories
// that appear whole or not at all and never change afterwards.
package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Partial ends the name of an entry that is not complete.
const Partial = ".part"

// Dir returns the cache's root, ${XDG_CACHE_HOME:-$HOME/.cache}/applevm. The
// same rule holds on macOS: it is a developer's cache, and scripts look there.
func Dir() (string, error) {
	base := os.Getenv("XDG_CACHE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("no place for the cache, set XDG_CACHE_HOME: %w", err)
		}
		base = filepath.Join(home, ".cache")
	}
	return filepath.Join(base, "applevm"), nil
}

// Make returns the entry of the given name, a relative path below Dir. If there
// is none, fill is called with an empty directory, which becomes the entry when
// fill succeeds and is removed when it fails. Concurrent calls for one name,
// from any process, fill it once.
func Make(ctx context.Context, name string, fill func(dir string) error) (string, error) {
	root, err := Dir()
	if err != nil {
		return "", err
	}
	entry := filepath.Join(root, name)
	if _, err := os.Stat(entry); err == nil {
		return entry, nil
	}
	unlock, err := Lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(entry); err == nil {
		return entry, nil
	}
	if err := os.MkdirAll(filepath.Dir(entry), 0o755); err != nil {
		return "", err
	}
	// The name is not random: what a killed process left is removed by the next.
	tmp := entry + Partial
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := fill(tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, entry); err != nil {
		return "", err
	}
	return entry, nil
}

// Lock takes the exclusive lock of the given name, waiting for it until ctx
// ends. A process that dies releases its locks.
func Lock(ctx context.Context, name string) (unlock func(), err error) {
	root, err := Dir()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(root, "locks", filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another process's lock on %s: %w", path, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
