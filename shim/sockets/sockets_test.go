package sockets

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/guest/stream"
	"github.com/applevm/applevm/internal/accept"
	"github.com/applevm/applevm/internal/shortdir"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// shout answers with what it has read, in capitals, when the client has ended its half.
func shout(c net.Conn) {
	defer c.Close()
	b, _ := io.ReadAll(c)
	_, _ = c.Write(bytes.ToUpper(b))
}

func listenAt(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go accept.All(t.Context(), l, func(c net.Conn) { go shout(c) })
	return l
}

// call speaks as the agent does.
func call(t *testing.T, c net.Conn, first []byte, text string) (string, error) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	defer c.Close()
	w, r := stream.NewWriter(c), stream.NewReader(c)
	_, err := w.Write(first)
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	return string(b), err
}

func TestShared(t *testing.T) {
	dir := shortdir.New(t)
	// A path that no address has room for, by a link.
	deep := filepath.Join(dir, strings.Repeat("d", 100))
	must(t, os.Mkdir(deep, 0o700))
	t.Chdir(deep)
	first := listenAt(t, "first")
	listenAt(t, filepath.Join(dir, "second"))
	listenAt(t, filepath.Join(dir, "unshared"))
	must(t, os.Symlink(filepath.Join(deep, "first"), filepath.Join(dir, "link")))
	s, err := Share(t.Context(), []string{filepath.Join(dir, "link"), filepath.Join(dir, "second")}, 4)
	must(t, err)
	defer s.Close()
	l, err := net.Listen("unix", filepath.Join(dir, "vsock"))
	must(t, err)
	s.Serve(l)
	ask := func(first []byte, text string) (string, error) {
		t.Helper()
		c, err := net.Dial("unix", filepath.Join(dir, "vsock"))
		must(t, err)
		return call(t, c, first, text)
	}
	number := func(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
	big := strings.Repeat("x", 1<<20)
	for n := range uint16(2) {
		for _, text := range []string{"", "hello", big} {
			if got, err := ask(number(n), text); err != nil || got != strings.ToUpper(text) {
				t.Errorf("socket %d: %d bytes of %d came back, %v", n, len(got), len(text), err)
			}
		}
	}
	for _, bad := range [][]byte{number(2), number(65535), {0}} {
		if got, err := ask(bad, ""); err == nil && got != "" {
			t.Errorf("socket %x: %q", bad, got)
		}
	}
	// One that its server has made anew is the same to the guest.
	_ = first.Close()
	if got, err := ask(number(0), "x"); err == nil && got != "" {
		t.Errorf("a socket without a server: %q", got)
	}
	listenAt(t, "first")
	if got, err := ask(number(0), "again"); err != nil || got != "AGAIN" {
		t.Errorf("a socket made anew: %q, %v", got, err)
	}
	// More connections than may be are closed; when those end there is room again.
	waitFor(t, "the end of all before", func() bool { return len(s.slots) == 0 })
	var held []net.Conn
	for range 4 {
		c, err := net.Dial("unix", filepath.Join(dir, "vsock"))
		must(t, err)
		held = append(held, c)
	}
	waitFor(t, "all slots to be taken", func() bool { return len(s.slots) == 4 })
	if got, err := ask(number(1), "x"); err == nil && got != "" {
		t.Errorf("one too many: %q", got)
	}
	for _, c := range held {
		_ = c.Close()
	}
	waitFor(t, "room again", func() bool { return len(s.slots) == 0 })
	if got, err := ask(number(1), "x"); err != nil || got != "X" {
		t.Errorf("after the crowd: %q, %v", got, err)
	}
	// Close ends what is under way.
	c, err := net.Dial("unix", filepath.Join(dir, "vsock"))
	must(t, err)
	defer c.Close()
	_, err = stream.NewWriter(c).Write(number(1))
	must(t, err)
	waitFor(t, "the connection", func() bool { return len(s.slots) == 1 })
	s.Close()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection after Close: %v", err)
	}
	if _, err := Share(t.Context(), []string{filepath.Join(dir, "nosuch")}, 1); err == nil || !strings.Contains(err.Error(), "share the socket "+dir+"/nosuch") {
		t.Errorf("a socket that is not there: %v", err)
	}
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("%s did not come", what)
}

func TestPublished(t *testing.T) {
	dir := shortdir.New(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	// A server that has died left one behind.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: at("one"), Net: "unix"})
	must(t, err)
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	p, err := Publish(t.Context(), "web", []Publication{{at("one"), "/run/1"}, {at("two"), "/run/2"}}, 2)
	must(t, err)
	if st, err := os.Stat(at("one")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	// The guest says where it was sent to.
	p.Serve(func(_ context.Context, port uint32) (net.Conn, error) {
		if port != api.ForwardPort {
			return nil, fmt.Errorf("port %d", port)
		}
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			r, w := stream.NewReader(theirs), stream.NewWriter(theirs)
			head := make([]byte, 3)
			if _, err := io.ReadFull(r, head); err != nil || head[0] != api.ForwardUnix {
				return
			}
			to := make([]byte, binary.BigEndian.Uint16(head[1:]))
			if _, err := io.ReadFull(r, to); err != nil {
				return
			}
			text, err := io.ReadAll(r)
			if err == nil {
				_, err = fmt.Fprintf(w, "%q %s", to, text)
			}
			if err == nil {
				_ = w.Close()
			}
			_, _ = theirs.Read(make([]byte, 1))
		}()
		return ours, nil
	})
	for name, want := range map[string]string{"one": `"web\x00/run/1" hello`, "two": `"web\x00/run/2" hello`} {
		c, err := net.Dial("unix", at(name))
		must(t, err)
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_, err = io.WriteString(c, "hello")
		must(t, err, c.(*net.UnixConn).CloseWrite())
		if b, err := io.ReadAll(c); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		_ = c.Close()
	}
	must(t, os.WriteFile(at("file"), nil, 0o600))
	for path, want := range map[string]string{at("two"): "another program serves a socket there", at("file"): "no socket", at("nosuch/x"): "no such file"} {
		_, err := Publish(t.Context(), "x", []Publication{{at("three"), "/a"}, {path, "/b"}}, 1)
		if err == nil || !strings.Contains(err.Error(), "publish the container's socket /b as "+path) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Lstat(at("three")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a socket was left behind: %v", err)
		}
	}
	// What came in its place is not ours to remove.
	must(t, os.Remove(at("two")))
	listenAt(t, at("two"))
	p.Close()
	if _, err := os.Lstat(at("one")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := os.Lstat(at("two")); err != nil {
		t.Errorf("another's socket: %v", err)
	}
}
