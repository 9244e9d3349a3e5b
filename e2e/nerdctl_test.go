package e2e

import (
	"context"
	"strings"
	"testing"
)

func TestNerdctl(t *testing.T) {
	s := rootStack(t)
	ctx := t.Context()

	t.Run("run", func(t *testing.T) {
		if out := must(t, s.NerdctlRun(ctx, "--rm", img, "echo", "hello")); out != "hello\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("exit code", func(t *testing.T) {
		if r := do(t, s.NerdctlRun(ctx, "--rm", img, "sh", "-c", "echo out; echo err >&2; exit 42")); r.code != 42 || r.stdout != "out\n" || !strings.Contains(r.stderr, "err\n") {
			t.Error(r)
		}
	})
	t.Run("stdin", func(t *testing.T) {
		cmd := s.NerdctlRun(ctx, "--rm", "-i", img, "cat")
		cmd.Stdin = strings.NewReader("some input\n")
		if out := must(t, cmd); out != "some input\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("hostname and hosts", func(t *testing.T) {
		out := must(t, s.NerdctlRun(ctx, "--rm", "--hostname", "box", img, "sh", "-c", "hostname; cat /etc/hostname /etc/hosts"))
		if !strings.HasPrefix(out, "box\nbox\n") || !strings.Contains(out, "localhost") {
			t.Errorf("got %q", out)
		}
	})
	t.Run("command that does not exist", func(t *testing.T) {
		r := do(t, s.NerdctlRun(ctx, "--rm", "--name", "nosuch", img, "nosuch"))
		if r.code == 0 || !strings.Contains(r.stderr, `exec: \"nosuch\": executable file not found in $PATH`) {
			t.Error(r)
		}
		// nerdctl keeps a container that could not be created, with runc too.
		_ = do(t, s.Nerdctl(context.Background(), "rm", "-f", "nosuch"))
	})
	t.Run("detached", func(t *testing.T) {
		const id = "web"
		t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", id).Run() })
		must(t, s.NerdctlRun(ctx, "-d", "--name", id, img, "sh", "-c", "echo ready; echo warned >&2; exec sleep 1000"))
		if out := must(t, s.Nerdctl(ctx, "exec", id, "cat", "/proc/1/comm")); out != "sleep\n" {
			t.Errorf("exec: %q", out)
		}
		if r := do(t, s.Nerdctl(ctx, "exec", id, "sh", "-c", "exit 5")); !strings.Contains(r.stderr, "exit code 5") {
			t.Errorf("exec's exit code: %s", r)
		}
		if r := do(t, s.Nerdctl(ctx, "exec", id, "nosuch")); r.code == 0 || !strings.Contains(r.stderr, `exec: \"nosuch\": executable file not found in $PATH`) {
			t.Errorf("exec of a missing command: %s", r)
		}
		if out := must(t, s.Nerdctl(ctx, "ps")); !strings.Contains(out, "Up") || !strings.Contains(out, id) {
			t.Errorf("ps: %s", out)
		}
		waitFor(t, "the log", func() bool {
			r := do(t, s.Nerdctl(ctx, "logs", id))
			return r.stdout == "ready\n" && r.stderr == "warned\n"
		})
		must(t, s.Nerdctl(ctx, "stop", "-t", "1", id))
		if out := must(t, s.Nerdctl(ctx, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", id)); out != "exited 137\n" {
			t.Errorf("inspect after stop: %q", out)
		}
		must(t, s.Nerdctl(ctx, "start", id))
		if out := must(t, s.Nerdctl(ctx, "exec", id, "cat", "/proc/1/comm")); out != "sleep\n" {
			t.Errorf("exec after start: %q", out)
		}
		must(t, s.Nerdctl(ctx, "kill", id))
		must(t, s.Nerdctl(ctx, "rm", "-f", id))
	})
	if out := must(t, s.Nerdctl(ctx, "ps", "-aq")); out != "" {
		t.Errorf("containers left: %s", out)
	}
	clean(t, s)
}
