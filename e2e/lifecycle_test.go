package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// refused runs commands at the same time, and requires that each fails.
func refused(t *testing.T, commands ...*exec.Cmd) {
	t.Helper()
	var wg sync.WaitGroup
	for _, cmd := range commands {
		wg.Go(func() {
			timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !exit.Exited() {
				t.Errorf("%q: %v: %s", cmd.Args[1:], err, out)
			}
			t.Logf("%q: %s", cmd.Args[1:], strings.TrimSpace(string(out)))
		})
	}
	wg.Wait()
}

// A machine that is stopped makes commands fail in a bounded time; what failed has not
// happened when it runs on; and a container of a machine that never does can be killed
// and removed.
func TestStoppedVMM(t *testing.T) {
	s := rootStack(t)
	ctx := t.Context()
	t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", "still").Run() })
	must(t, s.NerdctlRun(ctx, "-d", "--name", "still", img, "sleep", "1000"))
	signal := func(sig syscall.Signal) {
		t.Helper()
		vmms := s.VMMs()
		if len(vmms) != 1 {
			t.Fatalf("machines: %v", vmms)
		}
		if err := syscall.Kill(vmms[0].PID, sig); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	id := strings.TrimSpace(must(t, s.Nerdctl(ctx, "inspect", "--format", "{{.ID}}", "still")))
	refused(t,
		s.Nerdctl(ctx, "exec", "still", "touch", "/by-exec"),
		s.Nerdctl(ctx, "pause", "still"),
		s.Ctr(ctx, "task", "metrics", id), // nerdctl stats asks again and again
		s.Nerdctl(ctx, "update", "--pids-limit", "77", "still"),
		s.Nerdctl(ctx, "kill", "-s", "TERM", "still"),
	)
	signal(syscall.SIGCONT)
	waitFor(t, "a container that runs", func() bool { return do(t, s.Nerdctl(ctx, "exec", "still", "true")).code == 0 })
	if got := must(t, s.Nerdctl(ctx, "inspect", "--format", "{{.State.Status}}", "still")); got != "running\n" {
		t.Errorf("status %q", got)
	}
	if r := do(t, s.Nerdctl(ctx, "exec", "still", "pgrep", "-c", "touch")); strings.TrimSpace(r.stdout) != "0" {
		t.Errorf("an exec that failed runs: %s", r)
	}
	signal(syscall.SIGSTOP)
	must(t, s.Nerdctl(ctx, "kill", "-s", "KILL", "still"))
	if got := must(t, s.Nerdctl(ctx, "wait", "still")); got != "137\n" {
		t.Errorf("exit code %q", got)
	}
	must(t, s.Nerdctl(ctx, "start", "still"))
	signal(syscall.SIGSTOP)
	must(t, s.Nerdctl(ctx, "rm", "-f", "still"))
	clean(t, s)
}

// A guest's kernel that panics is the end of the container, with an exit that is told.
func TestKernelPanic(t *testing.T) {
	s := rootStack(t)
	ctx := t.Context()
	t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", "panic").Run() })
	r := do(t, s.NerdctlRun(ctx, "--privileged", "--name", "panic", img, "sh", "-c",
		"echo before; echo kept >/kept; sync; echo c >/proc/sysrq-trigger; sleep 1000"))
	if r.code != 137 {
		t.Errorf("run: %s\nwant exit code 137", r)
	}
	if got := must(t, s.Nerdctl(ctx, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "panic")); got != "exited 137\n" {
		t.Errorf("status %q", got)
	}
	if got := must(t, s.Nerdctl(ctx, "logs", "panic")); !strings.HasPrefix(got, "before\n") {
		t.Errorf("logs %q", got)
	}
	must(t, s.Nerdctl(ctx, "rm", "panic"))
	clean(t, s)
}

// Pausing and resuming twice, and signals to a paused container, do what they do with
// runc.
func TestPauseAsWithRunc(t *testing.T) {
	s := rootStack(t)
	unpacked(t, s)
	seen := map[string]string{}
	on(t, func(t *testing.T, rt string) {
		id := sleeper(t, s, rt)
		var log []string
		note := func(args ...string) {
			r := do(t, s.Ctr(t.Context(), append([]string{"task"}, args...)...))
			ok := "works"
			if r.code != 0 {
				ok = "fails"
			}
			log = append(log, fmt.Sprintf("%s %s: %s", strings.Join(args[:len(args)-1], " "), ok, taskStatus(t, s, id)))
		}
		note("resume", id)
		note("pause", id)
		note("pause", id)
		note("resume", id)
		note("resume", id)
		note("pause", id)
		note("kill", "-s", "USR1", id)
		must(t, s.Ctr(t.Context(), "task", "kill", "-s", "KILL", id))
		// With the freezer of cgroup v1 a process dies when it is resumed.
		_ = do(t, s.Ctr(t.Context(), "task", "resume", id))
		waitFor(t, "the end", func() bool { return taskStatus(t, s, id) == "STOPPED" })
		seen[rt] = strings.Join(log, "\n")
	})
	if seen["applevm"] != seen["runc"] {
		t.Errorf("applevm:\n%s\nrunc:\n%s", seen["applevm"], seen["runc"])
	}
}

// Signals reach the process by name and by number, real-time ones too, also an exec.
func TestSignals(t *testing.T) {
	s := userStack(t)
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	// bash names signals by their numbers in trap as well.
	const script = `for n in $(seq 1 64); do [ $n = 9 ] || [ $n = 17 ] || [ $n = 19 ] || trap "echo $n" $n; done; echo ready; while :; do sleep 0.05; done`
	must(t, s.CtrRun(t.Context(), "-d", "--log-uri", "file://"+s.Dir+"/tmp/signals.log", img, id, "bash", "-c", script))
	inner := s.CtrExec(t.Context(), "--exec-id", "e", id, "bash", "-c", script)
	execOut := &lockedBuffer{}
	inner.Stdout = execOut
	if err := inner.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inner.Process.Kill(); _ = inner.Wait() })
	own := func() string { return readAll(t, s.Dir+"/tmp/signals.log") }
	waitFor(t, "both", func() bool { return own() == "ready\n" && execOut.String() == "ready\n" })
	for _, target := range []struct {
		flags []string
		out   func() string
	}{{nil, own}, {[]string{"--exec-id", "e"}, execOut.String}} {
		want := "ready\n"
		for _, sig := range []struct{ arg, number string }{
			{"HUP", "1"}, {"SIGUSR1", "10"}, {"usr2", "12"}, {"15", "15"}, {"WINCH", "28"},
			{"34", "34"}, {"RTMIN+3", "37"}, {"SIGRTMAX-1", "63"}, {"64", "64"},
		} {
			must(t, s.Ctr(t.Context(), append(append([]string{"task", "kill", "-s", sig.arg}, target.flags...), id)...))
			want += sig.number + "\n"
			waitFor(t, "signal "+sig.arg, func() bool { return target.out() == want })
		}
	}
}

// Processes whose parents have died are reaped: by PID 1 of the machine where the
// container shares its PID namespace, and by the container's --init.
func TestOrphansAreReaped(t *testing.T) {
	s := rootStack(t)
	const script = `for i in 1 2 3 4 5; do (sleep 0.2 & sleep 0.3 &); done; sleep 2; n=0
while ps -eo stat= | grep -q ^Z; do n=$((n+1)); [ $n -lt 300 ] || { ps -ef; exit 1; }; sleep 0.1; done; echo none`
	for _, args := range [][]string{{"--pid", "host"}, {"--init"}} {
		t.Run(args[0], func(t *testing.T) {
			if got := must(t, s.NerdctlRun(t.Context(), append(append([]string{"--rm"}, args...), img, "sh", "-c", script)...)); got != "none\n" {
				t.Errorf("zombies: %s", got)
			}
		})
	}
	// An exec's children are the container's when the exec has ended.
	t.Run("exec", func(t *testing.T) {
		t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", "reaps").Run() })
		must(t, s.NerdctlRun(t.Context(), "-d", "--name", "reaps", "--init", img, "sleep", "1000"))
		must(t, s.Nerdctl(t.Context(), "exec", "reaps", "sh", "-c", "sleep 0.3 & sleep 0.4 &"))
		time.Sleep(time.Second)
		waitFor(t, "the reaping", func() bool {
			return strings.TrimSpace(do(t, s.Nerdctl(t.Context(), "exec", "reaps", "sh", "-c", "ps -eo stat= | grep -c ^Z")).stdout) == "0"
		})
	})
}
