package stdio

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/guest/stream"
)

// TestMain lets the test binary stand in for a logging program: it copies what
// it reads from descriptors 3 and 4 into files named in its arguments.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "logger" {
		logMain(os.Args[2:])
		return
	}
	os.Exit(m.Run())
}

func logMain(args []string) {
	dir := args[0]
	if len(args) > 1 && args[1] == "die" {
		os.Exit(1)
	}
	_ = os.WriteFile(filepath.Join(dir, "env"), []byte(os.Getenv("CONTAINER_ID")+" "+os.Getenv("CONTAINER_NAMESPACE")), 0o600)
	ready := os.NewFile(5, "ready")
	_, _ = ready.Write([]byte{1})
	ready.Close()
	if len(args) > 1 && args[1] == "die-later" {
		_, _ = io.ReadFull(os.NewFile(3, "stdout"), make([]byte, 10))
		os.Exit(1)
	}
	if _, err := os.Stat(filepath.Join(dir, "died")); err != nil && len(args) > 1 && args[1] == "die-once" {
		_, _ = io.ReadFull(os.NewFile(3, "stdout"), make([]byte, 10))
		_ = os.WriteFile(filepath.Join(dir, "died"), nil, 0o600)
		os.Exit(0)
	}
	if len(args) > 1 && args[1] == "slow" {
		time.Sleep(2500 * time.Millisecond)
	}
	var wg sync.WaitGroup
	for fd, name := range map[uintptr]string{3: "stdout", 4: "stderr"} {
		wg.Go(func() {
			f, err := os.Create(filepath.Join(dir, name))
			if err == nil {
				_, _ = io.Copy(f, os.NewFile(fd, name))
			}
		})
	}
	wg.Wait()
	// Slow, as one that writes over a network: nothing may be lost.
	time.Sleep(100 * time.Millisecond)
	_ = os.WriteFile(filepath.Join(dir, "end"), nil, 0o600)
}

// world is a hub and a guest that dials it.
type world struct {
	t   *testing.T
	dir string
	hub *Hub
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "hub"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, hub: NewHub(l)}
	t.Cleanup(func() {
		w.hub.Close()
		os.RemoveAll(dir)
	})
	return w
}

// dial connects as the agent does for the stream called name.
func (w *world) dial(name string) net.Conn {
	w.t.Helper()
	token, err := stream.ParseToken(name)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := net.Dial("unix", filepath.Join(w.dir, "hub"))
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := c.Write(token[:]); err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) fifo(name string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) open(cfg Config) *IO {
	w.t.Helper()
	s, err := Open(context.Background(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() })
	s.Copy(w.hub)
	return s
}

// send sends data as a process's output, and its end.
func (w *world) send(name string, data []byte) {
	c := w.dial(name)
	defer c.Close()
	sw := stream.NewWriter(c)
	if _, err := sw.Write(data); err != nil {
		w.t.Error(err)
	}
	if err := sw.Close(); err != nil {
		w.t.Error(err)
	}
}

func waitIO(t *testing.T, s *IO) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestFIFOsCarryEveryByte(t *testing.T) {
	w := newWorld(t)
	in, out, errs := w.fifo("in"), w.fifo("out"), w.fifo("err")
	data := make([]byte, 3<<20)
	rand.Read(data)
	s := w.open(Config{Stdin: in, Stdout: out, Stderr: errs})
	inName, outName, errName := s.Names()

	var wg sync.WaitGroup
	got := map[string][]byte{}
	var mu sync.Mutex
	for _, path := range []string{out, errs} {
		f, err := os.OpenFile(path, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			b, _ := io.ReadAll(f) // to the end that the shim makes
			mu.Lock()
			defer mu.Unlock()
			got[path] = b
		})
	}
	wg.Go(func() { w.send(outName, data) })
	wg.Go(func() { w.send(errName, []byte("oops")) })
	wg.Go(func() {
		f, err := os.OpenFile(in, os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = f.Write(data)
		f.Close()
		s.CloseStdin()
	})
	c := w.dial(inName)
	read, err := io.ReadAll(stream.NewReader(c))
	c.Close()
	if err != nil || !bytes.Equal(read, data) {
		t.Errorf("stdin: %d bytes, %v", len(read), err)
	}
	waitIO(t, s)
	wg.Wait()
	if !bytes.Equal(got[out], data) || string(got[errs]) != "oops" {
		t.Errorf("stdout: %d bytes, stderr: %q", len(got[out]), got[errs])
	}
}

func TestStdinOutlivesItsClients(t *testing.T) {
	w := newWorld(t)
	in := w.fifo("in")
	s := w.open(Config{Stdin: in})
	name, _, _ := s.Names()
	c := w.dial(name)
	defer c.Close()
	r := stream.NewReader(c)
	for _, text := range []string{"one", "two"} {
		f, err := os.OpenFile(in, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.WriteString(text)
		f.Close()
		b := make([]byte, 3)
		if _, err := io.ReadFull(r, b); err != nil || string(b) != text {
			t.Fatalf("%q, %v", b, err)
		}
	}
	s.CloseStdin()
	if n, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestStdinOfOneClientEndsWithIt(t *testing.T) {
	w := newWorld(t)
	in := w.fifo("in")
	s := w.open(Config{Stdin: in, OneClient: true})
	name, _, _ := s.Names()
	c := w.dial(name)
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	r := stream.NewReader(c)
	// A client that says nothing has not been there.
	f, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if f, err = os.OpenFile(in, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 3)
	for _, text := range []string{"one", "two"} {
		_, _ = f.WriteString(text)
		if _, err := io.ReadFull(r, b); err != nil || string(b) != text {
			t.Fatalf("%q, %v", b, err)
		}
	}
	f.Close()
	if n, err := r.Read(b); !errors.Is(err, io.EOF) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestFileTakesBothOutputs(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.dir, "logs", "c.log")
	s := w.open(Config{Stdout: "file://" + path, Stderr: "file://" + path})
	_, out, errs := s.Names()
	w.send(out, []byte("out\n"))
	w.send(errs, []byte("err\n"))
	waitIO(t, s)
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 8 || !strings.Contains(string(b), "out\n") || !strings.Contains(string(b), "err\n") {
		t.Errorf("%q, %v", b, err)
	}
}

func TestLoggerGetsEverything(t *testing.T) {
	for _, scheme := range []string{"binary", "binary-v2"} {
		t.Run(scheme, func(t *testing.T) {
			w := newWorld(t)
			s := w.open(Config{Namespace: "ns", ID: "web", Stdout: scheme + "://" + os.Args[0] + "?logger=" + w.dir})
			_, out, errs := s.Names()
			data := bytes.Repeat([]byte("a line of a log\n"), 20000)
			w.send(out, data)
			w.send(errs, []byte("oops"))
			waitIO(t, s)
			s.Close()
			for name, want := range map[string]string{"stdout": string(data), "stderr": "oops", "env": "web ns", "end": ""} {
				b, err := os.ReadFile(filepath.Join(w.dir, name))
				if err != nil || string(b) != want {
					t.Errorf("%s: %d bytes, %v", name, len(b), err)
				}
			}
		})
	}
}

func TestLoggerThatDiesIsAnError(t *testing.T) {
	w := newWorld(t)
	if _, err := Open(context.Background(), Config{Stdout: "binary-v2://" + os.Args[0] + "?logger=" + w.dir + "&die="}); err == nil || !strings.Contains(err.Error(), "ended before it was ready") {
		t.Errorf("error %v", err)
	}
	if _, err := Open(context.Background(), Config{Stdout: "binary:///nowhere/logger"}); err == nil || !strings.Contains(err.Error(), "start the logging program") {
		t.Errorf("error %v", err)
	}
}

func TestLoggerArgs(t *testing.T) {
	got, err := loggerArgs("z=1&a=two%20words&flag")
	if want := "z|1|a|two words|flag|"; err != nil || strings.Join(got, "|") != want {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := loggerArgs("a=%zz"); err == nil {
		t.Error("no error")
	}
}

func TestNoStreams(t *testing.T) {
	w := newWorld(t)
	s := w.open(Config{})
	if in, out, errs := s.Names(); in+out+errs != "" {
		t.Errorf("names %q %q %q", in, out, errs)
	}
	waitIO(t, s)
}

func TestTerminalHasNoStderr(t *testing.T) {
	w := newWorld(t)
	s := w.open(Config{Stdout: w.fifo("out"), Stderr: filepath.Join(w.dir, "none"), Terminal: true})
	if _, out, errs := s.Names(); out == "" || errs != "" {
		t.Errorf("names %q %q", out, errs)
	}
}

func TestOpenErrorsNameTheStream(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{Stdin: filepath.Join(w.dir, "none")}, "open stdin"},
		{Config{Stdout: filepath.Join(w.dir, "none")}, "open stdout"},
		{Config{Stderr: filepath.Join(w.dir, "none")}, "open stderr"},
		{Config{Stdout: w.dir}, "is a directory"},
		{Config{Stdout: "npipe://x"}, `scheme "npipe" is not implemented`},
		{Config{Stdout: "file://relative"}, "does not name an absolute path"},
	} {
		if _, err := Open(context.Background(), tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want one with %q", tc.cfg, err, tc.want)
		}
	}
}

func TestCloseEndsAStreamThatNobodyReads(t *testing.T) {
	w := newWorld(t)
	s := w.open(Config{Stdout: w.fifo("out")})
	_, out, _ := s.Names()
	c := w.dial(out)
	defer c.Close()
	go func() {
		sw := stream.NewWriter(c)
		for {
			if _, err := sw.Write(make([]byte, stream.MaxFrame)); err != nil {
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Wait(ctx); err == nil {
		t.Error("delivered to nobody")
	}
	s.Close()
	waitIO(t, s)
}

func TestABrokenLogDoesNotStopTheProcess(t *testing.T) {
	w := newWorld(t)
	s := w.open(Config{Stdout: "/dev/full"})
	_, out, _ := s.Names()
	w.send(out, make([]byte, 4<<20))
	waitIO(t, s)
}

func TestHubKnowsOnlyNames(t *testing.T) {
	w := newWorld(t)
	s := w.open(Config{Stdout: "file://" + filepath.Join(w.dir, "log")})
	_, out, errs := s.Names()
	w.send(errs, nil)
	ended := func(c net.Conn) {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a stranger's connection: %v", err)
		}
		c.Close()
	}
	ended(w.dial(stream.NewToken().String())) // a name that nobody gave
	for range 4 {                             // some that say nothing
		c, err := net.Dial("unix", filepath.Join(w.dir, "hub"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := w.dial(out)
	defer first.Close()
	sw := stream.NewWriter(first)
	_, _ = sw.Write([]byte("mine"))
	log := func() string {
		b, _ := os.ReadFile(filepath.Join(w.dir, "log"))
		return string(b)
	}
	for deadline := time.Now().Add(30 * time.Second); log() != "mine" && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	ended(w.dial(out)) // a name that was taken
	_ = sw.Close()
	waitIO(t, s)
	if got := log(); got != "mine" {
		t.Errorf("log %q", got)
	}
}

func TestHubsEndEndsStreams(t *testing.T) {
	w := newWorld(t)
	s := w.open(Config{Stdout: w.fifo("out")})
	w.hub.Close()
	waitIO(t, s)
	late := w.open(Config{Stdout: w.fifo("late")})
	waitIO(t, late)
}
