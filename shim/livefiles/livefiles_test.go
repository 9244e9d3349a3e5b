package livefiles

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(name, content string) {
		t.Helper()
		must(os.WriteFile(at(name), []byte(content), 0o644))
	}
	must(os.Mkdir(at("real"), 0o755), os.Mkdir(at("etc"), 0o755))
	write("etc/hosts", "1")
	write("etc/other", "x")
	write("real/first", "1")
	write("real/second", "2")
	must(os.Symlink("../real/first", at("etc/link")))

	seen := make(chan string, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Follow(ctx, []string{at("etc/hosts"), at("etc/link")}, func(path string) {
			b, _ := os.ReadFile(path)
			seen <- filepath.Base(path) + "=" + string(b)
		})
	}()
	wait := func(what, want string) {
		t.Helper()
		for late := time.After(30 * time.Second); ; {
			select {
			case got := <-seen:
				if got == want {
					return
				}
			case <-late:
				t.Fatalf("%s: %q was not seen", what, want)
			}
		}
	}
	wait("the beginning", "hosts=1")
	wait("the beginning", "link=1")
	write("etc/hosts", "2")
	wait("written in place", "hosts=2")
	write("etc/new", "3")
	must(os.Rename(at("etc/new"), at("etc/hosts")))
	wait("replaced", "hosts=3")
	write("etc/hosts", "4")
	wait("the replacement is written", "hosts=4")
	must(os.Remove(at("etc/hosts")))
	wait("removed", "hosts=")
	write("etc/hosts", "5")
	wait("made anew", "hosts=5")
	write("real/first", "7")
	wait("the target of a link", "link=7")
	must(os.Symlink("../real/second", at("etc/tmp")), os.Rename(at("etc/tmp"), at("etc/link")))
	wait("a link that leads elsewhere", "link=2")
	write("real/second", "8")
	wait("the new target", "link=8")
	cancel()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
}

// TestFollowWithoutAWatch: a directory that is not there cannot be watched.
func TestFollowWithoutAWatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	Follow(ctx, []string{filepath.Join(dir, "hosts")}, func(path string) {
		if _, err := os.Stat(path); err == nil {
			cancel() // seen
		} else if err := os.MkdirAll(path, 0o755); err != nil {
			t.Error(err)
			cancel()
		}
	})
}
