package agent

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/applevm/applevm/guest/agent/agenttest"
	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("error %v has code %v, want %v", err, got, want)
	}
}

func TestFirstProcess(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	for _, tc := range []struct {
		name, script     string
		code             uint32
		stdout, stderr   string
		spec             func(*specs.Spec)
		stdoutContaining string
	}{
		{name: "output", script: "echo hello; echo oops >&2", stdout: "hello\n", stderr: "oops\n"},
		{name: "exit code", script: "exit 3", code: 3},
		{name: "is the first of its namespace", script: "echo $$", stdout: "1\n"},
		{name: "hostname", script: "hostname", stdout: "box\n"},
		{name: "environment", script: "echo $A", stdout: "b\n"},
		{name: "limits", script: "ulimit -n", stdout: "1024\n"},
		{name: "may be killed when memory runs out", script: "cat /proc/self/oom_score_adj", stdout: "0\n"},
		{name: "loopback of its own is up", script: "cat /proc/net/if_inet6; cat /proc/net/dev", stdoutContaining: "lo:"},
		{name: "own cgroup", script: "grep ^0: /proc/self/cgroup", stdout: "0::/agent-test-p\n"},
		{name: "writable root", script: "echo x >/file && cat /file", stdout: "x\n"},
		{name: "read-only root", script: "touch /file2", code: 1, stderr: "touch: /file2: Read-only file system\n",
			spec: func(s *specs.Spec) { s.Root.Readonly = true }},
		{name: "user", script: "id", stdout: "uid=1000(app) gid=1001(app) groups=2000(extra)\n",
			spec: func(s *specs.Spec) { s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{2000}} }},
		{name: "user by name", script: "id", stdout: "uid=1000(app) gid=1001(app) groups=2000(extra)\n",
			spec: func(s *specs.Spec) { s.Process.User = specs.User{Username: "app"} }},
		{name: "working directory", script: "pwd", stdout: "/tmp\n", spec: func(s *specs.Spec) { s.Process.Cwd = "/tmp" }},
		{name: "nothing on stdin", script: "cat; echo done", stdout: "done\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := h.Start(agenttest.Config{ID: "p", Args: []string{"sh", "-c", tc.script}, Spec: tc.spec}, fs)
			if code := r.Finish(); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if tc.stdoutContaining != "" {
				r.Stdout.WaitFor(t, tc.stdoutContaining)
			} else if got := r.Stdout.String(); got != tc.stdout {
				t.Errorf("stdout %q, want %q", got, tc.stdout)
			}
			if got := r.Stderr.String(); got != tc.stderr {
				t.Errorf("stderr %q, want %q", got, tc.stderr)
			}
			r.MustDelete()
		})
	}
}

func TestKilledFirstProcessHasSignalInExitCode(t *testing.T) {
	h := newHost(t)
	r := h.Box(h.System())
	if err := r.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if code := r.Finish(); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	wantCode(t, r.Kill(unix.SIGTERM, false), codes.NotFound)
	wantCode(t, r.Kill(unix.SIGTERM, true), codes.NotFound)
	r.MustDelete()
	wantCode(t, r.Delete(), codes.NotFound)
}

func TestLifecycle(t *testing.T) {
	h := newHost(t)
	ctx := agenttest.Context(t)
	fs := h.System()
	state := func(id string) task.Status {
		t.Helper()
		s, err := h.Task.State(ctx, &taskapi.StateRequest{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		return s.Status
	}
	want := func(id string, s task.Status) {
		t.Helper()
		if got := state(id); got != s {
			t.Errorf("status is %v, want %v", got, s)
		}
	}
	r, err := h.Create(agenttest.Config{ID: "l", Args: []string{"sleep", "1000"}}, fs)
	if err != nil {
		t.Fatal(err)
	}
	want(r.ID, task.Status_CREATED)
	wantCode(t, r.Delete(), codes.FailedPrecondition)
	_, err = h.Create(agenttest.Config{ID: "l", Args: []string{"true"}}, fs)
	wantCode(t, err, codes.AlreadyExists)
	r.MustStart()
	want(r.ID, task.Status_RUNNING)
	_, err = h.Task.Start(ctx, &taskapi.StartRequest{ID: r.ID})
	wantCode(t, err, codes.FailedPrecondition)
	wantCode(t, r.Delete(), codes.FailedPrecondition)

	if _, err := h.Task.Pause(ctx, &taskapi.PauseRequest{ID: r.ID}); err != nil {
		t.Fatal(err)
	}
	want(r.ID, task.Status_PAUSED)
	if _, err := h.Task.Resume(ctx, &taskapi.ResumeRequest{ID: r.ID}); err != nil {
		t.Fatal(err)
	}
	want(r.ID, task.Status_RUNNING)
	_, err = h.Task.Resume(ctx, &taskapi.ResumeRequest{ID: r.ID})
	wantCode(t, err, codes.FailedPrecondition)

	pids, err := h.Task.Pids(ctx, &taskapi.PidsRequest{ID: r.ID})
	if err != nil || len(pids.Processes) != 1 {
		t.Errorf("pids %v, %v", pids, err)
	}
	conn, err := h.Task.Connect(ctx, &taskapi.ConnectRequest{ID: r.ID})
	if err != nil || conn.TaskPid != pids.Processes[0].Pid {
		t.Errorf("connect %v, %v; pids %v", conn, err, pids)
	}
	if err := r.Kill(unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	r.Finish()
	want(r.ID, task.Status_STOPPED)
	_, err = h.Task.Pids(ctx, &taskapi.PidsRequest{ID: r.ID})
	wantCode(t, err, codes.FailedPrecondition)
	r.MustDelete()
	_, err = h.Task.State(ctx, &taskapi.StateRequest{ID: r.ID})
	wantCode(t, err, codes.NotFound)
}

func TestKillBeforeStart(t *testing.T) {
	h := newHost(t)
	r, err := h.Create(agenttest.Config{ID: "k", Args: []string{"true"}}, h.System())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if code := r.Finish(); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	_, err = h.Task.Start(agenttest.Context(t), &taskapi.StartRequest{ID: r.ID})
	wantCode(t, err, codes.FailedPrecondition)
	r.MustDelete()
}

// The texts are runc's: clients show them and Docker's derive exit codes from them.
func TestCommandErrors(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	cases := []struct {
		name string
		args []string
		want string
	}{
		{"not in PATH", []string{"nosuch"}, `exec: "nosuch": executable file not found in $PATH`},
		{"no such file", []string{"/nosuch"}, `exec: "/nosuch": stat /nosuch: no such file or directory`},
		{"not executable", []string{"/etc/notexec"}, `exec: "/etc/notexec": permission denied`},
		{"a directory", []string{"/etc"}, `exec: "/etc": is a directory`},
		{"another architecture", []string{"foreign"}, `exec: "foreign": exec format error: it is built for riscv64 and this machine is ` + hostArch + `; pull the image for linux/` + hostArch},
		{"interpreter for another architecture", []string{"/bin/foreign-script"}, `exec: "/bin/foreign-script": exec format error: it is built for riscv64`},
	}
	for _, tc := range cases {
		t.Run("create/"+tc.name, func(t *testing.T) {
			r, err := h.Create(agenttest.Config{ID: "e", Args: tc.args}, fs)
			if err == nil || !strings.Contains(err.Error(), "unable to start container process: ") || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
			_, err = h.Task.State(agenttest.Context(t), &taskapi.StateRequest{ID: r.ID})
			wantCode(t, err, codes.NotFound)
		})
	}
	box := h.Box(fs)
	for i, tc := range cases {
		t.Run("exec/"+tc.name, func(t *testing.T) {
			x, err := box.Exec(fmt.Sprint("x", i), false, false, nil, tc.args...)
			if err != nil {
				t.Fatal(err)
			}
			_, err = h.Task.Start(agenttest.Context(t), &taskapi.StartRequest{ID: x.ID, ExecID: x.ExecID})
			if err == nil || !strings.Contains(err.Error(), "unable to start container process: ") || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
			<-x.Stdout.Done // what the client waits for
			x.MustDelete()
		})
	}
}

func TestExec(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	box := h.Box(fs)
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				x, err := box.Exec(fmt.Sprint("many", i), false, false, nil, "sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := h.Task.Start(agenttest.Context(t), &taskapi.StartRequest{ID: x.ID, ExecID: x.ExecID}); err != nil {
					t.Error(err)
					return
				}
				w, err := h.Task.Wait(agenttest.Context(t), &taskapi.WaitRequest{ID: x.ID, ExecID: x.ExecID})
				if err != nil || w.ExitStatus != uint32(i) {
					t.Errorf("exit %v, %v; want %d", w, err, i)
				}
				<-x.Stdout.Done
				if got := x.Stdout.String(); got != fmt.Sprintln(i) {
					t.Errorf("output %q, want %d", got, i)
				}
				if err := x.Delete(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("user, directory, environment", func(t *testing.T) {
		x, err := box.Exec("u", false, false, func(p *specs.Process) {
			p.User = specs.User{Username: "app"}
			p.Cwd = "/tmp"
			p.Env = append(p.Env, "X=y")
		}, "sh", "-c", "id -un; pwd; echo $X; grep CapEff /proc/self/status || cat /proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		x.MustStart()
		x.Finish()
		if got := x.Stdout.String(); !strings.HasPrefix(got, "app\n/tmp\ny\n") || !strings.Contains(got, "CapEff:\t0000000000000000") {
			t.Errorf("output %q", got)
		}
		x.MustDelete()
	})
	t.Run("killed", func(t *testing.T) {
		x := box.MustExec("k", "sleep", "1000")
		if err := x.Kill(unix.SIGTERM, false); err != nil {
			t.Fatal(err)
		}
		if code := x.Finish(); code != 143 {
			t.Errorf("exit code %d, want 143", code)
		}
		wantCode(t, x.Kill(unix.SIGTERM, false), codes.NotFound)
		x.MustDelete()
	})
	t.Run("states", func(t *testing.T) {
		x, err := box.Exec("s", false, false, nil, "sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, x.Kill(unix.SIGTERM, false), codes.FailedPrecondition)
		_, err = box.Exec("s", false, false, nil, "true")
		wantCode(t, err, codes.AlreadyExists)
		x.MustStart()
		wantCode(t, x.Delete(), codes.FailedPrecondition)
		_, err = h.Task.Start(agenttest.Context(t), &taskapi.StartRequest{ID: x.ID, ExecID: x.ExecID})
		wantCode(t, err, codes.FailedPrecondition)
	})
	t.Run("ends with the container", func(t *testing.T) {
		x := box.MustExec("end", "sleep", "1000")
		if err := box.Kill(unix.SIGKILL, false); err != nil {
			t.Fatal(err)
		}
		if code := x.Finish(); code != 137 {
			t.Errorf("exit code %d, want 137", code)
		}
		box.Finish()
		_, err := box.Exec("late", false, false, nil, "true")
		wantCode(t, err, codes.FailedPrecondition)
	})
}

func TestStdin(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	const size = 1 << 20 // far more than pipes and sockets hold
	data := []byte(strings.Repeat("0123456789abcdef", size/16))
	t.Run("end of the stream", func(t *testing.T) {
		r := h.Start(agenttest.Config{ID: "i", Args: []string{"cat"}, Stdin: true}, fs)
		if _, err := r.In.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := r.In.Close(); err != nil {
			t.Fatal(err)
		}
		if code := r.Finish(); code != 0 || r.Stdout.String() != string(data) {
			t.Errorf("exit code %d, %d bytes came back, want %d", code, len(r.Stdout.String()), size)
		}
		r.MustDelete()
	})
	t.Run("CloseIO after the last byte", func(t *testing.T) {
		r := h.Start(agenttest.Config{ID: "i", Args: []string{"cat"}, Stdin: true}, fs)
		if _, err := r.In.Write(data); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Task.CloseIO(agenttest.Context(t), &taskapi.CloseIORequest{ID: r.ID, Stdin: true}); err != nil {
			t.Fatal(err)
		}
		if code := r.Finish(); code != 0 || r.Stdout.String() != string(data) {
			t.Errorf("exit code %d, %d bytes came back, want %d", code, len(r.Stdout.String()), size)
		}
		r.MustDelete()
	})
	t.Run("process that does not read", func(t *testing.T) {
		r := h.Start(agenttest.Config{ID: "i", Args: []string{"sh", "-c", "exec <&-; sleep 0.1; exit 4"}, Stdin: true}, fs)
		for {
			if _, err := r.In.Write(data); err != nil {
				break // the agent has hung up
			}
		}
		if code := r.Finish(); code != 4 {
			t.Errorf("exit code %d, want 4", code)
		}
		r.MustDelete()
	})
}

func TestTerminal(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	resize := func(r *agenttest.Run, w, hh uint32) error {
		_, err := h.Task.ResizePty(agenttest.Context(t), &taskapi.ResizePtyRequest{ID: r.ID, ExecID: r.ExecID, Width: w, Height: hh})
		return err
	}
	session := func(t *testing.T, r *agenttest.Run) {
		t.Helper()
		if err := resize(r, 123, 45); err != nil {
			t.Fatal(err)
		}
		if _, err := r.In.Write([]byte("stty size; tty\n")); err != nil {
			t.Fatal(err)
		}
		r.Stdout.WaitFor(t, "45 123\r\n")
		if err := resize(r, 80, 25); err != nil {
			t.Fatal(err)
		}
		// Ctrl-C goes to the job in the foreground, Ctrl-D ends the shell.
		if _, err := r.In.Write([]byte("stty size; sh -c \"echo in fore''ground; exec sleep 1000\"\n")); err != nil {
			t.Fatal(err)
		}
		r.Stdout.WaitFor(t, "25 80\r\n")
		r.Stdout.WaitFor(t, "in foreground\r\n")
		if _, err := r.In.Write([]byte("\x03")); err != nil {
			t.Fatal(err)
		}
		r.Stdout.WaitFor(t, "^C")
		if _, err := r.In.Write([]byte("\nexit 6\n")); err != nil {
			t.Fatal(err)
		}
		if code := r.Finish(); code != 6 {
			t.Errorf("exit code %d, want 6; output %q", code, r.Stdout.String())
		}
		wantCode(t, resize(r, 70000, 1), codes.InvalidArgument)
	}
	size := func(p *specs.Process) { p.ConsoleSize = &specs.Box{Width: 20, Height: 10} }
	t.Run("first process", func(t *testing.T) {
		r := h.Start(agenttest.Config{ID: "t", Args: []string{"sh"}, Terminal: true, Stdin: true, Spec: func(s *specs.Spec) { size(s.Process) }}, fs)
		session(t, r)
		r.MustDelete()
	})
	t.Run("exec", func(t *testing.T) {
		box := h.Box(fs)
		x, err := box.Exec("t", true, true, size, "sh")
		if err != nil {
			t.Fatal(err)
		}
		x.MustStart()
		session(t, x)
		x.MustDelete()
	})
}

func TestFastExitsLoseNoOutput(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	check := func(t *testing.T, r *agenttest.Run) {
		t.Helper()
		// More than a pipe holds, and a last line.
		if r.Finish() != 0 || len(r.Stdout.String()) != 100_000+4 || !strings.HasSuffix(r.Stdout.String(), "end\n") {
			t.Fatalf("output of %d bytes, ends in %.10q", len(r.Stdout.String()), r.Stdout.String()[max(0, len(r.Stdout.String())-10):])
		}
		if got := r.Stderr.String(); got != "err\n" {
			t.Fatalf("stderr %q", got)
		}
		r.MustDelete()
	}
	script := []string{"sh", "-c", "head -c 100000 /dev/zero; echo err >&2; echo end"}
	t.Run("execs", func(t *testing.T) {
		box := h.Box(fs)
		for i := range 150 {
			check(t, box.MustExec(fmt.Sprint("f", i), script...))
		}
		if err := box.Kill(unix.SIGKILL, false); err != nil {
			t.Fatal(err)
		}
		box.Finish()
		box.MustDelete()
	})
	t.Run("containers", func(t *testing.T) {
		for range 50 {
			check(t, h.Start(agenttest.Config{ID: "f", Args: script}, fs))
		}
	})
	t.Run("terminals", func(t *testing.T) {
		for range 20 {
			r := h.Start(agenttest.Config{ID: "f", Args: []string{"sh", "-c", "head -c 20000 /bin/notes 2>/dev/null; echo end"}, Terminal: true}, fs)
			if r.Finish() != 0 || r.Stdout.String() != "end\r\n" {
				t.Fatalf("output %q", r.Stdout.String())
			}
			r.MustDelete()
		}
	})
}

func TestBackgroundChildDoesNotHoldTheExit(t *testing.T) {
	h := newHost(t)
	box := h.Box(h.System())
	x := box.MustExec("bg", "sh", "-c", "sleep 1000 & echo started; head -c 50000 /dev/zero; echo; echo end")
	if code := x.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	<-x.Stdout.Marked
	if out := x.Stdout.String(); !strings.HasPrefix(out, "started\n") || !strings.HasSuffix(out, "end\n") || len(out) != 50000+len("started\n\nend\n") {
		t.Errorf("before the mark came %d bytes", len(out))
	}
	select {
	case <-x.Stdout.Done:
		t.Error("the stream has ended although a process still holds it")
	default:
	}
	x.MustDelete()
	if err := box.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	<-x.Stdout.Done
}

// A child that never stops to write does not hold back the mark of its parent.
func TestMarkComesThoughOthersWriteOn(t *testing.T) {
	h := newHost(t)
	box := h.Box(h.System())
	x := box.MustExec("bg", "sh", "-c", "echo first; cat /dev/zero &")
	if code := x.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	<-x.Stdout.Marked
	if out := x.Stdout.String(); !strings.HasPrefix(out, "first\n") {
		t.Errorf("before the mark came %.20q", out)
	}
	if err := box.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	<-x.Stdout.Done
}

// A child that ignores the hangup holds the terminal, but not the mark.
func TestTerminalIsMarkedThoughOthersHoldIt(t *testing.T) {
	h := newHost(t)
	box := h.Box(h.System())
	x := h.NewRun(box.ID, "tty", true, false)
	spec := agenttest.Spec([]string{"sh", "-c", "trap '' HUP; sleep 1000 & head -c 3000 /dev/zero; echo end"}).Process
	spec.Terminal = true
	if err := x.ExecSpec(spec); err != nil {
		t.Fatal(err)
	}
	x.MustStart()
	if code := x.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	<-x.Stdout.Marked
	if out := x.Stdout.String(); !strings.HasSuffix(out, "end\r\n") || len(out) != 3005 {
		t.Errorf("%d bytes before the mark", len(out))
	}
	if err := box.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	<-x.Stdout.Done
}

func TestHostThatDoesNotReadHoldsBackOneStreamOnly(t *testing.T) {
	h := newHost(t)
	box := h.Box(h.System())
	x := h.NewRun(box.ID, "stuck", false, false)
	name, ch := h.Unread() // nobody reads it
	x.OutName = name
	spec := agenttest.Spec([]string{"sh", "-c", "head -c 10000000 /dev/zero; echo done >&2"}).Process
	if err := x.ExecSpec(spec); err != nil {
		t.Fatal(err)
	}
	x.MustStart()
	for i := range 5 {
		y := box.MustExec(fmt.Sprint("free", i), "echo", "hello")
		if y.Finish() != 0 || y.Stdout.String() != "hello\n" {
			t.Errorf("output %q", y.Stdout.String())
		}
	}
	if got := x.Stderr.String(); got != "" {
		t.Errorf("the process has ended: %q", got)
	}
	// When the host goes away head gets a SIGPIPE and the shell runs on.
	_ = (<-ch).Close()
	x.Stderr.WaitFor(t, "done\n")
	if code := x.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestSharedPIDNamespaceEndsWithItsFirstProcess(t *testing.T) {
	h := newHost(t)
	r := h.Start(agenttest.Config{ID: "s", Args: []string{"sh", "-c", "sleep 1000 & sleep 1000 & echo ready; read x"}, Stdin: true, Spec: func(s *specs.Spec) {
		s.Linux.Namespaces = s.Linux.Namespaces[1:]
	}}, h.System())
	r.Stdout.WaitFor(t, "ready")
	x := r.MustExec("x", "sleep", "1000")
	if err := r.In.Close(); err != nil {
		t.Fatal(err)
	}
	r.Finish() // the streams end because all who held them are dead
	if code := x.Finish(); code != 137 {
		t.Errorf("exit code of the exec is %d, want 137", code)
	}
	r.MustDelete()
}

func TestOrphansAreReaped(t *testing.T) {
	h := newHost(t)
	// Without a PID namespace of its own a container's orphans fall to the agent.
	r := h.Start(agenttest.Config{ID: "o", Args: []string{"sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.01 & ); done; sleep 0.3; echo ready; sleep 1000"}, Spec: func(s *specs.Spec) {
		s.Linux.Namespaces = s.Linux.Namespaces[1:]
	}}, h.System())
	r.Stdout.WaitFor(t, "ready")
	for deadline := time.Now().Add(20 * time.Second); exitedChild() != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a zombie stays")
		}
	}
}

func TestWhatIsNotBuiltSaysSo(t *testing.T) {
	h := newHost(t)
	ctx := agenttest.Context(t)
	for name, call := range map[string]func() error{
		"Checkpoint": func() error { _, err := h.Task.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{}); return err },
		"Shutdown":   func() error { _, err := h.Task.Shutdown(ctx, &taskapi.ShutdownRequest{}); return err },
	} {
		err := call()
		wantCode(t, err, codes.Unimplemented)
		if err == nil || !strings.Contains(err.Error(), name+" ") {
			t.Errorf("error %v does not name %s", err, name)
		}
	}
}

// What a paused container has written is on its disk, whose file system is as clean
// as after an unmount; and it can be killed.
func TestPauseFreezesTheDisk(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	r := h.Start(agenttest.Config{ID: "p", Args: []string{"sh", "-c", "echo kept >/file; echo ready; while :; do date >/busy; done"}}, fs)
	r.Stdout.WaitFor(t, "ready")
	ctx := agenttest.Context(t)
	if _, err := h.Task.Pause(ctx, &taskapi.PauseRequest{ID: r.ID}); err != nil {
		t.Fatal(err)
	}
	img, ok := h.Image(fs.Writable.Disk)
	if !ok {
		t.Fatalf("no disk %s", fs.Writable.Disk)
	}
	if out := h.Run("e2fsck", "-fn", img.Path); strings.Contains(out, "recover") {
		t.Errorf("the paused container's file system is not clean: %s", out)
	}
	if out := h.Run("debugfs", "-R", "cat upper/file", img.Path); !strings.Contains(out, "kept\n") {
		t.Errorf("the file on the disk: %q", out)
	}
	_, err := r.Exec("e", false, false, nil, "true")
	wantCode(t, err, codes.FailedPrecondition)
	if _, err := h.Task.Resume(ctx, &taskapi.ResumeRequest{ID: r.ID}); err != nil {
		t.Fatal(err)
	}
	if code := r.MustExec("after", "sh", "-c", "echo more >/more").Finish(); code != 0 {
		t.Errorf("a write after the pause: exit code %d", code)
	}
	if _, err := h.Task.Pause(ctx, &taskapi.PauseRequest{ID: r.ID}); err != nil {
		t.Fatal(err)
	}
	if err := r.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if code := r.Finish(); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	r.MustDelete()
}

// A process that is to start in a container which was paused meanwhile does not
// start, and does not hold up the resuming.
func TestNothingStartsWhilePaused(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	r := h.Box(fs)
	ctx := agenttest.Context(t)
	e := h.NewRun(r.ID, "e", false, false)
	if err := e.ExecSpec(&specs.Process{Args: []string{"true"}, Cwd: "/", Env: []string{"PATH=/bin"}}); err != nil {
		t.Fatal(err)
	}
	created, err := h.Create(agenttest.Config{ID: "c", Args: []string{"true"}}, &guestv1.Rootfs{Lower: fs.Lower})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{r.ID, created.ID} {
		if _, err := h.Task.Pause(ctx, &taskapi.PauseRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = h.Task.Start(ctx, &taskapi.StartRequest{ID: r.ID, ExecID: "e"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = h.Task.Start(ctx, &taskapi.StartRequest{ID: created.ID})
	wantCode(t, err, codes.FailedPrecondition)
	for _, id := range []string{r.ID, created.ID} {
		if _, err := h.Task.Resume(ctx, &taskapi.ResumeRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if code := r.MustExec("after", "true").Finish(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	created.MustStart()
	if code := created.Finish(); code != 0 {
		t.Errorf("exit code %d of a container that was paused before its start", code)
	}
}

// What a container has written is on its disk when its end is known, before it is
// deleted: the host may read it then.
func TestExitLeavesACleanDisk(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	r := h.Start(agenttest.Config{ID: "x", Args: []string{"sh", "-c", "echo kept >/file; head -c 5000000 /dev/zero >/more"}}, fs)
	if code := r.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	img, ok := h.Image(fs.Writable.Disk)
	if !ok {
		t.Fatalf("no disk %s", fs.Writable.Disk)
	}
	if out := h.Run("e2fsck", "-fn", img.Path); strings.Contains(out, "recover") {
		t.Errorf("the file system is not clean: %s", out)
	}
	if out := h.Run("debugfs", "-R", "cat upper/file", img.Path); !strings.Contains(out, "kept\n") {
		t.Errorf("the file on the disk: %q", out)
	}
	r.MustDelete()
}

// Before the machine's end a disk that is clean is left as it is: an unmount would
// only take time. Others are not.
func TestShutdownLeavesCleanDisks(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	ended := h.Start(agenttest.Config{ID: "ended", Args: []string{"sh", "-c", "echo kept >/file"}}, fs)
	if code := ended.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	other := &guestv1.Rootfs{Lower: fs.Lower, Writable: h.Writable("rw-other")}
	h.Start(agenttest.Config{ID: "running", Args: []string{"sh", "-c", "echo also >/file; echo ready; while :; do date >/busy; done"}}, other).
		Stdout.WaitFor(t, "ready")
	unfrozen := &guestv1.Rootfs{Lower: fs.Lower, Writable: h.Writable("rw-unfrozen")}
	thawed := h.Start(agenttest.Config{ID: "thawed", Args: []string{"true"}}, unfrozen)
	thawed.Wait()
	c, err := h.agent.container(thawed.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.thaw(endThawTimeout); err != nil { // as if it could not be frozen at its end
		t.Fatal(err)
	}
	if _, err := h.Guest.Shutdown(agenttest.Context(t), &guestv1.ShutdownRequest{LeaveClean: true}); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(mountsBelow(t, h.Dir), "\n")
	for _, f := range []*guestv1.Rootfs{fs, other} {
		img, ok := h.Image(f.Writable.Disk)
		if !ok {
			t.Fatalf("no disk %s", f.Writable.Disk)
		}
		if out := h.Run("e2fsck", "-fn", img.Path); strings.Contains(out, "recover") {
			t.Errorf("the file system is not clean: %s", out)
		}
		if !strings.Contains(left, f.Writable.Disk) {
			t.Errorf("disk %s is unmounted: %q of %s", f.Writable.Disk, left, h.Dir)
		}
	}
	if strings.Contains(left, unfrozen.Writable.Disk) {
		t.Errorf("a disk that was not frozen is mounted: %s", left)
	}
	_, err = h.Create(agenttest.Config{ID: "late", Args: []string{"true"}}, fs)
	wantCode(t, err, codes.Unavailable)
}

func TestGuestService(t *testing.T) {
	h := newHost(t)
	ctx := agenttest.Context(t)
	info, err := h.Guest.Info(ctx, &guestv1.InfoRequest{})
	if err != nil || info.Version != api.Version || info.Kernel == "" || info.AgentStartNs != 1 || info.AgentReadyNs != 2 {
		t.Errorf("info %v, %v", info, err)
	}
	before := time.Now()
	for _, req := range []*guestv1.ShiftClockRequest{{}, {ShiftNs: 5}, {ShiftNs: -6, Slew: true}} {
		resp, err := h.Guest.ShiftClock(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		if now := time.Unix(0, resp.GetUnixNanos()); now.Before(before.Round(0)) || now.After(time.Now()) {
			t.Errorf("the clock shows %v", now)
		}
	}
	if got, want := strings.Join(h.shifts, ", "), "5ns false, -6ns true"; got != want {
		t.Errorf("clock shifted by %s, want %s", got, want)
	}
}

func TestShutdownEndsEverything(t *testing.T) {
	h := newHost(t)
	fs := h.System()
	polite := h.Start(agenttest.Config{ID: "polite", Args: []string{"sh", "-c", "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.01; done"}}, fs)
	polite.Stdout.WaitFor(t, "ready")
	stubborn := h.Start(agenttest.Config{ID: "stubborn", Args: []string{"sh", "-c", "trap '' TERM; echo ready; sleep 1000"}},
		&guestv1.Rootfs{Lower: fs.Lower})
	stubborn.Stdout.WaitFor(t, "ready")
	if _, err := h.Task.Pause(agenttest.Context(t), &taskapi.PauseRequest{ID: stubborn.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Guest.Shutdown(agenttest.Context(t), &guestv1.ShutdownRequest{GraceNs: int64(time.Second)}); err != nil {
		t.Fatal(err)
	}
	<-polite.Stdout.Done
	if got := polite.Stdout.String(); got != "ready\nbye\n" {
		t.Errorf("output %q", got)
	}
	if left := mountsBelow(t, h.Dir); len(left) > 0 {
		t.Errorf("mounts left: %q", left)
	}
	_, err := h.Create(agenttest.Config{ID: "late", Args: []string{"true"}}, fs)
	wantCode(t, err, codes.Unavailable)
}
