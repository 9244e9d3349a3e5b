package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/stack"
)

// restartContainerd kills containerd and starts it again; away runs in between.
func restartContainerd(t *testing.T, s *stack.Stack, away func()) {
	t.Helper()
	s.KillContainerd()
	if away != nil {
		away()
	}
	if err := s.StartContainerd(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// fifo is the host's end of a stream of a container that ctr has started.
func fifo(t *testing.T, s *stack.Stack, id, name string) string {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(s.Dir, "fifo", "*", id+"-"+name))
	if len(found) != 1 {
		t.Fatalf("FIFOs of %s's %s: %q", id, name, found)
	}
	return found[0]
}

// taskStatus is a task's status as `ctr task list` has it, empty if there is none.
func taskStatus(t *testing.T, s *stack.Stack, id string) string {
	t.Helper()
	for line := range strings.Lines(must(t, s.Ctr(t.Context(), "task", "list"))) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			return f[2]
		}
	}
	return ""
}

// eventLog is what `ctr events` prints.
type eventLog struct {
	path string
	stop func()
}

// events records containerd's events until it ends. It returns when that has begun.
func events(t *testing.T, s *stack.Stack) eventLog {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "events"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := s.Ctr(context.Background(), "events")
	cmd.Stdout = f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l := eventLog{f.Name(), func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }}
	t.Cleanup(l.stop)
	// It does not say when it listens: make events until it has one.
	waitFor(t, "the first event", func() bool {
		must(t, s.Ctr(t.Context(), "namespace", "label", stack.Namespace, "probe="+fmt.Sprint(time.Now().UnixNano())))
		return len(l.of(t, "")) > 0
	})
	return l
}

// of returns the task events of a container, in short form and in their order; all
// events if id is empty.
func (l eventLog) of(t *testing.T, id string) []string {
	t.Helper()
	f, err := os.Open(l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		text := lines.Text()
		at, body := strings.Index(text, "/"), strings.Index(text, "{")
		if at < 0 || body < at {
			continue
		}
		topic := strings.TrimSpace(text[at:body])
		var e struct {
			ContainerID string `json:"container_id"`
			ID          string `json:"id"`
			ExecID      string `json:"exec_id"`
			ExitStatus  int    `json:"exit_status"`
		}
		if json.Unmarshal([]byte(text[body:]), &e) != nil {
			continue // it is being written
		}
		switch {
		case id == "":
		case e.ContainerID != id || !strings.HasPrefix(topic, "/tasks/"):
			continue
		}
		topic = strings.TrimPrefix(topic, "/tasks/")
		switch {
		case topic == "exit":
			topic = fmt.Sprintf("exit %s %d", e.ID, e.ExitStatus)
		case e.ExecID != "":
			topic += " " + e.ExecID
		}
		list = append(list, topic)
	}
	return list
}

// attached sends a line to a container that answers each, and requires its answer.
func attached(t *testing.T, s *stack.Stack, id, line string) {
	t.Helper()
	attach := s.Ctr(t.Context(), "task", "attach", id)
	in, out := piped(t, attach)
	// The client is killed: nothing tells the container.
	defer func() { _ = attach.Process.Kill(); _ = attach.Wait() }()
	_, _ = io.WriteString(in, line+"\n")
	want := "got " + line + "\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(out, got); err != nil || string(got) != want {
		t.Errorf("attach: %q, %v", got, err)
	}
}

// containerd is killed and started again while containers run: they run on, what they
// write is kept, what happens to them meanwhile is told, and all that clients do works.
func TestContainerdRestarts(t *testing.T) {
	s := newStack(t, stack.Options{})
	ctx := t.Context()
	nerdctl := func(args ...string) string { t.Helper(); return must(t, s.Nerdctl(ctx, args...)) }
	log := events(t, s)
	must(t, s.NerdctlRun(ctx, "-d", "--name", "web", img, "sh", "-c",
		"trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done"))
	must(t, s.CtrRun(ctx, "-d", img, "talk", "sh", "-c", `while read line; do echo "got $line"; done`))
	must(t, s.CtrRun(ctx, "-d", img, "ends", "sh", "-c", "read line; exit 5"))
	must(t, s.CtrExec(ctx, "--exec-id", "before", "talk", "true"))
	attached(t, s, "talk", "before")
	vmms := len(s.VMMs())

	restartContainerd(t, s, func() {
		in, err := os.OpenFile(fifo(t, s, "ends", "stdin"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(in, "go\n"); err != nil {
			t.Fatal(err)
		}
		_ = in.Close()
		// The output ends when the process has; its exit cannot be told now.
		out, err := os.Open(fifo(t, s, "ends", "stdout"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		_ = out.Close()
		// What others write is taken.
		logs, _ := filepath.Glob(filepath.Join(s.Dir, "nerdctl", "*", "containers", "*", "*", "*-json.log"))
		if len(logs) != 1 {
			t.Fatalf("log files %q", logs)
		}
		size := func() int64 { i, _ := os.Stat(logs[0]); return i.Size() }
		before := size()
		waitFor(t, "more output", func() bool { return size() > before })
	})
	if got := len(s.VMMs()); got != vmms {
		t.Fatalf("%d machines, before the restart %d", got, vmms)
	}

	// What happened while containerd was away.
	waitFor(t, "the exit of ends", func() bool { return taskStatus(t, s, "ends") == "STOPPED" })
	if r := do(t, s.Ctr(ctx, "task", "delete", "ends")); !strings.Contains(r.String(), "5") {
		t.Errorf("delete of one that has ended with 5: %s", r)
	}
	must(t, s.Ctr(ctx, "container", "delete", "ends"))

	log = events(t, s) // a new one: the other went down with containerd
	if out := nerdctl("exec", "web", "echo", "hi"); out != "hi\n" {
		t.Errorf("exec: %q", out)
	}
	lines := nerdctl("logs", "web")
	for i, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		if want := fmt.Sprintf("line %d", i+1); line != want {
			t.Fatalf("logs: %q, want %q", line, want)
		}
	}
	attached(t, s, "talk", "after")
	waited := make(chan string, 1)
	go func() {
		out, err := s.Nerdctl(ctx, "wait", "web").Output()
		waited <- fmt.Sprint(string(out), err)
	}()
	must(t, s.CtrExec(ctx, "--exec-id", "after", "talk", "sh", "-c", "exit 0"))
	nerdctl("kill", "-s", "TERM", "web")
	if got := <-waited; got != "7\n<nil>" {
		t.Errorf("wait: %q", got)
	}
	nerdctl("rm", "web")
	must(t, s.Ctr(ctx, "task", "kill", "-s", "KILL", "talk"))
	waitFor(t, "the end of talk", func() bool { return taskStatus(t, s, "talk") == "STOPPED" })
	_ = do(t, s.Ctr(ctx, "task", "delete", "talk")) // its code is the task's
	must(t, s.Ctr(ctx, "container", "delete", "talk"))
	const want = "exec-added after, exec-started after, exit after 0, exit talk 137, delete"
	waitFor(t, "the last event of talk", func() bool { return strings.HasSuffix(strings.Join(log.of(t, "talk"), ", "), ", delete") })
	if got := strings.Join(log.of(t, "talk"), ", "); got != want {
		t.Errorf("events of talk after the restart: %s\nwant %s", got, want)
	}
	clean(t, s)
}

// The events of a life, in the order that clients rely on.
func TestEventsComeInOrder(t *testing.T) {
	s := userStack(t)
	log := events(t, s)
	id := name(t)
	must(t, s.CtrRun(t.Context(), "-d", img, id, "sleep", "1000"))
	if r := do(t, s.CtrExec(t.Context(), "--exec-id", "e", id, "sh", "-c", "exit 4")); r.code != 4 {
		t.Errorf("exec: %s", r)
	}
	must(t, s.Ctr(t.Context(), "task", "pause", id))
	must(t, s.Ctr(t.Context(), "task", "resume", id))
	remove(t, s, id)
	const want = "create, start, exec-added e, exec-started e, exit e 4, paused, resumed, exit IT 137, delete"
	got := ""
	waitFor(t, "the last event", func() bool {
		got = strings.ReplaceAll(strings.Join(log.of(t, id), ", "), "exit "+id+" ", "exit IT ")
		return strings.HasSuffix(got, ", delete")
	})
	if got != want {
		t.Errorf("events %s\nwant %s", got, want)
	}
}

// The shim's death takes its machine along. containerd reports the exit, everything
// can be removed, and a container that is started again has what it had synced.
func TestShimKilled(t *testing.T) {
	s := rootStack(t)
	ctx := t.Context()
	nerdctl := func(t *testing.T, args ...string) string { t.Helper(); return must(t, s.Nerdctl(ctx, args...)) }
	killShim := func(t *testing.T) {
		t.Helper()
		shims := s.Shims()
		if len(shims) != 1 {
			t.Fatalf("shims: %v", shims)
		}
		if err := syscall.Kill(shims[0].PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the machine's end", func() bool { return len(s.VMMs()) == 0 })
	}
	// dd's conv=fsync returns when the file is on the disk.
	const write = "mkdir -p /data && head -c 3000000 /dev/urandom | dd of=/data/file conv=fsync 2>/dev/null && sync /data && sha256sum /data/file"

	t.Run("nerdctl", func(t *testing.T) {
		t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", "doomed").Run() })
		log := events(t, s)
		id := strings.TrimSpace(must(t, s.NerdctlRun(ctx, "-d", "--name", "doomed", img, "sleep", "1000")))
		sum := nerdctl(t, "exec", "doomed", "sh", "-c", write)
		for n := range 2 { // what was started again is as good
			killShim(t)
			// containerd publishes the exit of a task whose shim is gone, and removes it.
			waitFor(t, "the exit", func() bool { return strings.Count(strings.Join(log.of(t, id), ", "), "exit "+id+" 137") == n+1 })
			waitFor(t, "the task's removal", func() bool { return taskStatus(t, s, id) == "" })
			nerdctl(t, "start", "doomed")
			if got := nerdctl(t, "exec", "doomed", "sha256sum", "/data/file"); got != sum {
				t.Errorf("the file after the start: %s, before %s", got, sum)
			}
		}
		killShim(t)
		nerdctl(t, "rm", "-f", "doomed")
		clean(t, s)
	})
	t.Run("ctr", func(t *testing.T) {
		id := name(t)
		must(t, s.CtrRun(ctx, "-d", img, id, "sleep", "1000"))
		sum := must(t, s.CtrExec(ctx, "--exec-id", "w", id, "sh", "-c", write))
		killShim(t)
		waitFor(t, "the report of the exit", func() bool { return taskStatus(t, s, id) != "RUNNING" })
		_ = do(t, s.Ctr(ctx, "task", "delete", id)) // containerd may have removed it already
		if got := taskStatus(t, s, id); got != "" {
			t.Errorf("a task %s after its removal", got)
		}
		must(t, s.Ctr(ctx, "task", "start", "-d", "--fifo-dir", filepath.Join(s.Dir, "fifo"), id))
		if got := must(t, s.CtrExec(ctx, "--exec-id", "r", id, "sha256sum", "/data/file")); got != sum {
			t.Errorf("the file after the start: %s, before %s", got, sum)
		}
		remove(t, s, id)
		clean(t, s)
	})
	t.Run("--restart always", func(t *testing.T) {
		t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", "again").Run() })
		must(t, s.NerdctlRun(ctx, "-d", "--name", "again", "--restart", "always", img, "sleep", "1000"))
		sum := nerdctl(t, "exec", "again", "sh", "-c", write)
		killShim(t)
		waitFor(t, "the container runs again", func() bool {
			return len(s.VMMs()) == 1 && do(t, s.Nerdctl(ctx, "exec", "again", "true")).code == 0
		})
		if got := nerdctl(t, "exec", "again", "sha256sum", "/data/file"); got != sum {
			t.Errorf("the file after the restart: %s, before %s", got, sum)
		}
		nerdctl(t, "rm", "-f", "again")
		clean(t, s)
	})
}
