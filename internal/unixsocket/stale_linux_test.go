package unixsocket

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/internal/shortdir"
)

func TestRemoveStale(t *testing.T) {
	dir := shortdir.New(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	listen := func(name string) *net.UnixListener {
		t.Helper()
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at(name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	_ = listen("dead").Close()
	listen("served")
	// One that takes no more clients for now: they would have to wait (connect(2), EAGAIN).
	busy, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(busy) })
	if err := errors.Join(unix.Bind(busy, &unix.SockaddrUnix{Name: at("busy")}), unix.Listen(busy, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.Dial("unix", at("busy"))
		if err != nil {
			break
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	if err := errors.Join(os.WriteFile(at("file"), nil, 0o600), os.Symlink("dead", at("link"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"nothing": nil, "served": ErrServed, "busy": ErrServed, "file": ErrNotSocket, "link": ErrNotSocket} {
		_, before := os.Lstat(at(name))
		if err := RemoveStale(at(name)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if _, after := os.Lstat(at(name)); (before == nil) != (after == nil) {
			t.Errorf("%s: before %v, after %v", name, before, after)
		}
	}
	if err := RemoveStale(at("dead")); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(at("dead")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket that nobody serves: %v", err)
	}
}
