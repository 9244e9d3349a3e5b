package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A container that takes more than its limit is killed, and its reason is an event.
func TestOutOfMemory(t *testing.T) {
	s := userStack(t)
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	var events bytes.Buffer
	cmd := s.Ctr(t.Context(), "events")
	cmd.Stdout = &events
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := do(t, s.CtrRun(t.Context(), "--memory-limit", fmt.Sprint(64<<20), img, id, "dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1"))
	if r.code != 137 {
		t.Errorf("%s, want exit code 137", r)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	oom, exit := strings.Index(events.String(), "/tasks/oom"), strings.Index(events.String(), "/tasks/exit")
	if oom < 0 || exit < oom || strings.Count(events.String(), "/tasks/oom") != 1 {
		t.Errorf("events, of which one says that memory ran out and a later one tells the exit:\n%s", &events)
	}
}

// nerdctl changes a running container's limits, as far as its machine goes, and
// shows what it uses.
func TestUpdateAndStats(t *testing.T) {
	s := rootStack(t)
	ctx := t.Context()
	const id = "limited"
	t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", id).Run() })
	must(t, s.NerdctlRun(ctx, "-d", "--name", id, "--memory", "64m", "--pids-limit", "50", img, "sleep", "1000"))
	file := func(name string) string {
		return strings.TrimSpace(must(t, s.Nerdctl(ctx, "exec", id,
			"sh", "-c", "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/"+name)))
	}
	nproc := strings.TrimSpace(must(t, s.Nerdctl(ctx, "exec", id, "nproc")))
	if got := file("memory.max"); got != "67108864" || nproc != "1" {
		t.Errorf("memory.max %s, %s CPUs", got, nproc)
	}
	update := func(args ...string) *exec.Cmd {
		return s.Nerdctl(ctx, append(append([]string{"update"}, args...), id)...)
	}
	// Not --cpus, which nerdctl 2.3.5 takes and then forgets.
	must(t, update("--memory", "48m", "--cpu-quota", "50000", "--cpu-period", "100000", "--pids-limit", "44"))
	for name, want := range map[string]string{"memory.max": "50331648", "cpu.max": "50000 100000", "pids.max": "44"} {
		if got := file(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if r := do(t, update("--memory", "1g")); r.code == 0 || !strings.Contains(r.stderr, "a memory limit of 1GiB is beyond the container's machine") {
		t.Errorf("update beyond the machine: %s", r)
	}
	if out := must(t, s.Nerdctl(ctx, "stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}} {{.NetIO}}", id)); !strings.Contains(out, "/ 48MiB 1 0B / 0B") {
		t.Errorf("stats: %q", out)
	}
}

// The options of one container's runtime decide its machine's size.
func TestRuntimeOptions(t *testing.T) {
	s := userStack(t)
	file := filepath.Join(t.TempDir(), "options.toml")
	if err := os.WriteFile(file, []byte("[machine]\nmemory_mib = 300\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(file); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755) // the stack's user reads it
	}
	out := must(t, s.CtrRun(t.Context(), "--rm", "--runtime-config-path", file, img, name(t), "grep", "MemTotal", "/proc/meminfo"))
	var kib int
	if _, err := fmt.Sscanf(out, "MemTotal: %d kB", &kib); err != nil || kib < 240<<10 || kib > 300<<10 {
		t.Errorf("%q, %v: want about 300 MiB", out, err)
	}
}
