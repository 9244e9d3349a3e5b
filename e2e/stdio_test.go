package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/stack"
)

// runtimes are what stdio is compared of: ours, and runc's, which says what is right.
var runtimes = []string{"applevm", "runc"}

// ctrRun prepares `ctr run` by one of them; args as for stack.CtrRun.
func ctrRun(t *testing.T, s *stack.Stack, rt string, args ...string) *exec.Cmd {
	if rt == "applevm" {
		return s.CtrRun(t.Context(), args...)
	}
	return s.Ctr(t.Context(), append([]string{"run", "--runtime", "io.containerd.runc.v2", "--snapshotter", "overlayfs",
		"--fifo-dir", filepath.Join(s.Dir, "fifo")}, args...)...)
}

// on runs f with each runtime.
func on(t *testing.T, f func(t *testing.T, rt string)) {
	for _, rt := range runtimes {
		t.Run(rt, func(t *testing.T) { f(t, rt) })
	}
}

// unpacked has the image for runc too.
func unpacked(t *testing.T, s *stack.Stack) {
	t.Helper()
	must(t, ctrRun(t, s, "runc", "--rm", img, name(t)+"-unpack", "true"))
}

// sleeper starts a container that does nothing, for execs.
func sleeper(t *testing.T, s *stack.Stack, rt string) string {
	t.Helper()
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	must(t, ctrRun(t, s, rt, "-d", img, id, "sleep", "10000"))
	return id
}

// The end of a process's output is not lost by a client that reads slowly, as it is
// by ctr with runc: containerd's client stops to read when it hears of the exit.
func TestASlowReaderLosesNothing(t *testing.T) {
	s := rootStack(t)
	const lines = 25000
	cmd := s.CtrRun(t.Context(), "--rm", img, name(t), "seq", "1", fmt.Sprint(lines))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(out, first); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // the process has ended long since
	rest, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	var want bytes.Buffer
	for i := range lines {
		fmt.Fprintln(&want, i+1)
	}
	if got := append(first, rest...); !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes of %d", len(got), want.Len())
	}
}

// logger writes a logging program in sh: what comes from descriptors 3 and 4 goes to
// the files out and err in its directory; then the file end is made.
func logger(t *testing.T, s *stack.Stack, script string) (uri, dir string) {
	t.Helper()
	dir, err := os.MkdirTemp(s.Dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "logger.sh")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncd \"$2\"\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return "binary://" + path + "?dir=" + dir, dir
}

func TestLogURIs(t *testing.T) {
	s := rootStack(t)
	unpacked(t, s)
	on(t, func(t *testing.T, rt string) {
		id := name(t)
		const script = "seq 1 20000; echo oops >&2; exit 4"
		text := func(path string) string {
			t.Helper()
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		uri, dir := logger(t, s, `echo "$CONTAINER_ID $CONTAINER_NAMESPACE" >env
exec 5>&-
cat <&3 >out & cat <&4 >err & wait
`)
		if r := do(t, ctrRun(t, s, rt, "--rm", "--log-uri", uri, img, id+"-b", "sh", "-c", script)); r.code != 4 {
			t.Errorf("with a logging program: %s", r)
		}
		if n := strings.Count(text(filepath.Join(dir, "out")), "\n"); n != 20000 {
			t.Errorf("the logging program got %d lines of 20000", n)
		}
		if e, env := text(filepath.Join(dir, "err")), text(filepath.Join(dir, "env")); e != "oops\n" || env != id+"-b default\n" {
			t.Errorf("the logging program got %q on stderr, %q in its environment", e, env)
		}

		uri, _ = logger(t, s, "exec 5>&-\nhead -c 5 <&3 >/dev/null\n")
		if r := do(t, ctrRun(t, s, rt, "--rm", "--log-uri", uri, img, id+"-d", "bash", "-c",
			"(while :; do echo 0123456789; sleep 0.1; done); exit $?")); r.code != 141 {
			t.Errorf("writer to a logging program that dies: exit code %d, want that of a SIGPIPE", r.code)
		}
		if r := do(t, ctrRun(t, s, rt, "--rm", "--log-uri", "binary:///nosuch/logger", img, id+"-n", "true")); r.code == 0 ||
			!strings.Contains(r.stderr, "/nosuch/logger: no such file or directory") {
			t.Errorf("a logging program that does not exist: %s", r)
		}

		file := filepath.Join(dir, "a b", "deep", "log")
		for range 2 { // the second is appended
			if r := do(t, ctrRun(t, s, rt, "--rm", "--log-uri", "file://"+dir+"/a%20b/deep/log", img, id+"-f", "sh", "-c", script)); r.code != 4 {
				t.Errorf("with a file: %s", r)
			}
		}
		// runc's shim sometimes writes one stream over the end of the other.
		if log := text(file); rt == "applevm" && (strings.Count(log, "\n") != 40002 || strings.Count(log, "oops\n") != 2) {
			t.Errorf("the file has %d lines", strings.Count(log, "\n"))
		}
	})
}

func TestExecStdio(t *testing.T) {
	s := rootStack(t)
	unpacked(t, s)
	data := make([]byte, 8<<20)
	rand.Read(data)
	on(t, func(t *testing.T, rt string) {
		id := sleeper(t, s, rt)
		n := 0
		exec := func(cmd ...string) *exec.Cmd {
			n++
			return s.CtrExec(t.Context(), append([]string{"--exec-id", fmt.Sprint("x", n), id}, cmd...)...)
		}
		t.Run("every byte, both ways", func(t *testing.T) {
			cmd := exec("cat")
			cmd.Stdin = bytes.NewReader(data)
			if got := must(t, cmd); got != string(data) {
				t.Errorf("%d bytes of %d came back, or others", len(got), len(data))
			}
		})
		t.Run("one line of 4 MiB", func(t *testing.T) {
			got := must(t, exec("sh", "-c", "head -c 4194304 /dev/zero | tr '\\0' x; echo"))
			if len(got) != 4<<20+1 || strings.Trim(got, "x") != "\n" {
				t.Errorf("%d bytes", len(got))
			}
		})
		t.Run("input that is not read", func(t *testing.T) {
			cmd := exec("head", "-c", "3")
			cmd.Stdin = bytes.NewReader(data)
			if got := must(t, cmd); got != string(data[:3]) {
				t.Errorf("%q", got)
			}
		})
		t.Run("a child holds the output", func(t *testing.T) {
			if got := must(t, exec("sh", "-c", "(sleep 2; echo child) & echo parent")); got != "parent\nchild\n" {
				t.Errorf("%q", got)
			}
		})
		t.Run("fifty at once", func(t *testing.T) {
			var wg sync.WaitGroup
			for i := range 50 {
				cmd := exec("sh", "-c", fmt.Sprintf("echo %d; seq %d 5000; echo %d >&2", i, i, i))
				wg.Go(func() {
					var want strings.Builder
					fmt.Fprintln(&want, i)
					for k := i; k <= 5000; k++ {
						fmt.Fprintln(&want, k)
					}
					var out, errs bytes.Buffer
					cmd.Stdout, cmd.Stderr = &out, &errs
					if err := cmd.Run(); err != nil || out.String() != want.String() || errs.String() != fmt.Sprintln(i) {
						t.Errorf("exec %d: %v, %d bytes of %d, stderr %q", i, err, out.Len(), want.Len(), errs.String())
					}
				})
			}
			wg.Wait()
		})
		// ctr closes the task's stdin when its own has ended, but forgets to when that
		// is before its exec has been made: the test's ends once the process runs.
		t.Run("empty input ends", func(t *testing.T) {
			cmd := exec("sh", "-c", "echo ready; wc -c")
			in, out := piped(t, cmd)
			ready := make([]byte, len("ready\n"))
			if _, err := io.ReadFull(out, ready); err != nil {
				t.Error(err)
			}
			in.Close()
			count, err := io.ReadAll(out)
			if err != nil || string(count) != "0\n" {
				t.Errorf("%q, %v", count, err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
		if rt != "applevm" {
			return
		}
		t.Run("the shim's memory", func(t *testing.T) {
			shims := s.Shims()
			if len(shims) != 1 {
				t.Fatalf("shims: %v", shims)
			}
			before := rss(t, shims[0].PID)
			const size = 64 << 20
			cmd := exec("head", "-c", fmt.Sprint(size), "/dev/zero")
			var out counter
			cmd.Stdout = &out
			if err := cmd.Run(); err != nil || out != size {
				t.Fatalf("%d bytes, %v", out, err)
			}
			if grown := rss(t, shims[0].PID) - before; grown > 16<<20 {
				t.Errorf("it grew by %d MiB with %d MiB of output", grown>>20, size>>20)
			}
		})
	})
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// rss is the resident memory of a process in bytes.
func rss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}

// A detached container's stdin stays open while clients come and go, its output
// waits for the next.
func TestAttachAndDetach(t *testing.T) {
	s := rootStack(t)
	unpacked(t, s)
	on(t, func(t *testing.T, rt string) {
		id := name(t)
		t.Cleanup(func() { remove(t, s, id) })
		must(t, ctrRun(t, s, rt, "-d", img, id, "sh", "-c", "while read line; do echo \"got $line\"; done; echo end"))
		for _, text := range []string{"one", "two"} {
			attached(t, s, id, text)
			if out := must(t, s.Ctr(t.Context(), "task", "list")); !strings.Contains(out, "RUNNING") {
				t.Fatalf("after a client's end: %s", out)
			}
		}
	})
}

// What nerdctl's log has is whole, however fast the container ends.
func TestNerdctlLogs(t *testing.T) {
	s := rootStack(t)
	ctx := t.Context()
	var want strings.Builder
	for i := range 30000 {
		fmt.Fprintln(&want, i+1)
	}
	for i := range 3 {
		id := fmt.Sprintf("burst%d", i)
		t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", id).Run() })
		must(t, s.NerdctlRun(ctx, "-d", "--name", id, img, "sh", "-c", "seq 1 30000; printf tail"))
		// Following is nerdctl's reading of the file, which skips bytes under load with any
		// runtime; here it only waits for the end.
		must(t, s.Nerdctl(ctx, "logs", "-f", id))
		if got := must(t, s.Nerdctl(ctx, "logs", id)); got != want.String()+"tail" {
			t.Errorf("logs has %d bytes of %d", len(got), want.Len()+4)
		}
	}
}
