package stdio

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/guest/stream"
)

// openReader opens a FIFO as a client does that has not begun to read.
func openReader(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// settles runs Settle and tells when it has returned.
func settles(ctx context.Context, s *IO, last bool) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		s.Settle(ctx, last)
		close(done)
	}()
	return done
}

func within(t *testing.T, what string, done <-chan struct{}, d time.Duration) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s takes more than %v", what, d)
	}
}

// What the exit waits for: the client has read everything, and so may close the
// FIFO when it hears of the exit, as containerd's client does.
func TestSettleWaitsForTheReader(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("FIFOs tell what is unread on Linux only")
	}
	w := newWorld(t)
	out := w.fifo("out")
	s := w.open(Config{Stdout: out})
	_, name, _ := s.Names()
	r := openReader(t, out)
	data := bytes.Repeat([]byte("0123456789abcde\n"), 20000) // five times what a FIFO holds
	go w.send(name, data)
	done := settles(t.Context(), s, true)
	var got []byte
	buf := make([]byte, 16<<10)
	for len(got) < len(data) {
		time.Sleep(5 * time.Millisecond)
		select {
		case <-done:
			t.Fatalf("settled when %d of %d bytes had been read", len(got), len(data))
		default:
		}
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	within(t, "settling after the last byte", done, 30*time.Second)
	if n, err := r.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("after the last byte: %d, %v", n, err)
	}
	if !bytes.Equal(got, data) {
		t.Error("other bytes came than were sent")
	}
}

// A container whose output nobody has ever read ends at once.
func TestSettleDoesNotWaitWithoutAReader(t *testing.T) {
	w := newWorld(t)
	s := w.open(Config{Stdout: w.fifo("out"), Stderr: w.fifo("err")})
	_, out, errs := s.Names()
	c := w.dial(out)
	defer c.Close()
	sw := stream.NewWriter(c)
	if _, err := sw.Write(make([]byte, 200000)); err != nil { // more than the FIFO holds
		t.Fatal(err)
	}
	go w.send(errs, []byte("a little"))
	within(t, "settling", settles(t.Context(), s, true), stalled/2)
	waitIO(t, s)
}

// An exec's exit does not wait for a child that holds the stream, but for all that
// came before the mark.
func TestSettleWaitsForTheMark(t *testing.T) {
	w := newWorld(t)
	out := w.fifo("out")
	s := w.open(Config{Stdout: out})
	_, name, _ := s.Names()
	r := openReader(t, out)
	c := w.dial(name)
	defer c.Close()
	sw := stream.NewWriter(c)
	done := settles(t.Context(), s, false)
	_, _ = sw.Write([]byte("own"))
	buf := make([]byte, 10)
	if _, err := io.ReadFull(r, buf[:3]); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
		t.Fatal("settled before the mark")
	case <-time.After(50 * time.Millisecond):
	}
	if err := sw.Mark(); err != nil {
		t.Fatal(err)
	}
	within(t, "settling after the mark", done, stalled/2)
	// The child goes on.
	_, _ = sw.Write([]byte("child"))
	if _, err := io.ReadFull(r, buf[:5]); err != nil || string(buf[:5]) != "child" {
		t.Errorf("%q, %v", buf[:5], err)
	}
}

func TestSettleEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	out := w.fifo("out")
	s := w.open(Config{Stdout: out})
	_, name, _ := s.Names()
	openReader(t, out) // which never reads
	c := w.dial(name)
	defer c.Close()
	_, _ = stream.NewWriter(c).Write([]byte("unread"))
	ctx, cancel := context.WithCancel(t.Context())
	done := settles(ctx, s, true)
	cancel()
	within(t, "settling", done, stalled/2)
}

// The FIFO of a detached container: clients come and go, as they do when
// containerd is restarted, and the process notices nothing.
func TestOutputOutlivesItsClients(t *testing.T) {
	w := newWorld(t)
	out := w.fifo("out")
	s := w.open(Config{Stdout: out})
	_, name, _ := s.Names()
	c := w.dial(name)
	defer c.Close()
	sw := stream.NewWriter(c)
	for _, text := range []string{"one", "two", "six"} {
		f, err := os.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sw.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 3)
		if _, err := io.ReadFull(f, b); err != nil || string(b) != text {
			t.Fatalf("%q, %v", b, err)
		}
		f.Close()
	}
	// Nobody reads: what is written now is there for the next.
	if _, err := sw.Write([]byte("kept")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := sw.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); string(b) != "kept" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// When the process has ended, who writes to its stdin gets an EPIPE; not before,
// though it may have closed its stdin: ctr would send it the SIGPIPE that comes with it.
func TestStdinThatNobodyReadsHasNoReader(t *testing.T) {
	w := newWorld(t)
	in := w.fifo("in")
	s := w.open(Config{Stdin: in})
	name, _, _ := s.Names()
	f, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := w.dial(name)
	_, _ = f.WriteString("x")
	b := make([]byte, 1)
	if _, err := io.ReadFull(stream.NewReader(c), b); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for range 20 {
		if _, err := f.WriteString("y"); err != nil {
			t.Fatalf("write to a stdin that is closed: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
	s.Settle(t.Context(), true)
	if _, err := f.WriteString("z"); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to the stdin of a process that has ended: %v", err)
	}
}

// A logging program that dies takes the pipe's reader with it, as under runc: the
// guest hears of it and closes the process's.
func TestLoggerThatDiesLaterEndsTheStream(t *testing.T) {
	w := newWorld(t)
	s := w.open(Config{Stdout: "binary://" + os.Args[0] + "?logger=" + w.dir + "&die-later="})
	_, out, _ := s.Names()
	c := w.dial(out)
	defer c.Close()
	sw := stream.NewWriter(c)
	for end := time.Now().Add(30 * time.Second); ; {
		if _, err := sw.Write(make([]byte, 1000)); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the stream goes on without a logging program")
		}
	}
}

// A logging program that ends because containerd does, as nerdctl's, runs again, and
// gets what the first has not read. The writers hear of nothing.
func TestLoggerOutlivesContainerd(t *testing.T) {
	w := newWorld(t)
	asked := 0
	incarnation := func() string { // containerd goes a little after the program, and comes back
		st, err := os.Stat(filepath.Join(w.dir, "died"))
		if err == nil {
			asked++
		}
		switch {
		case asked < 4:
			return "first"
		case time.Since(st.ModTime()) < time.Second:
			return ""
		}
		return "second"
	}
	s := w.open(Config{Namespace: "ns", ID: "web", Stdout: "binary://" + os.Args[0] + "?logger=" + w.dir + "&die-once=", Incarnation: incarnation})
	_, out, errs := s.Names()
	data := bytes.Repeat([]byte("a line of a log\n"), 20000) // more than a pipe holds
	go w.send(out, data)
	go w.send(errs, []byte("and another\n"))
	s.Settle(t.Context(), true)
	s.Close()
	if b, err := os.ReadFile(filepath.Join(w.dir, "stdout")); err != nil || !bytes.Equal(b, data[10:]) {
		t.Errorf("the log has %d bytes of %d, %v", len(b), len(data)-10, err)
	}
	if b, err := os.ReadFile(filepath.Join(w.dir, "stderr")); err != nil || string(b) != "and another\n" {
		t.Errorf("stderr %q, %v", b, err)
	}
}

// A logging program that is slow to read gets all, before the exit is told.
func TestSettleWaitsForASlowLogger(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("pipes tell what is unread on Linux only")
	}
	w := newWorld(t)
	s := w.open(Config{Namespace: "ns", ID: "web", Stdout: "binary://" + os.Args[0] + "?logger=" + w.dir + "&slow="})
	_, out, errs := s.Names()
	data := bytes.Repeat([]byte("a line of a log\n"), 20000)
	go w.send(out, data)
	go w.send(errs, nil)
	s.Settle(t.Context(), true)
	for _, e := range s.outputs() {
		if n := e.dst.unread(); n != 0 {
			t.Errorf("%s: %d bytes unread", e.name, n)
		}
	}
	s.Close()
	if b, err := os.ReadFile(filepath.Join(w.dir, "stdout")); err != nil || !bytes.Equal(b, data) {
		t.Errorf("the log has %d bytes of %d, %v", len(b), len(data), err)
	}
}

func TestFileURI(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.dir, "a b", "100%.log")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	uri := "file://" + w.dir + "/a%20b/100%25.log"
	s := w.open(Config{Stdout: uri, Stderr: uri})
	_, out, errs := s.Names()
	w.send(out, []byte("new\n"))
	w.send(errs, nil)
	waitIO(t, s)
	if b, err := os.ReadFile(path); string(b) != "old\nnew\n" {
		t.Errorf("%q, %v", b, err)
	}
}
