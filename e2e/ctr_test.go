package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/applevm/applevm/e2e/images"
	"golang.org/x/sys/unix"
)

func TestExitCodesAndOutput(t *testing.T) {
	s := userStack(t)
	tests := []struct {
		name           string
		cmd            []string
		code           int
		stdout, stderr string
	}{
		{"success", []string{"true"}, 0, "", ""},
		{"failure", []string{"false"}, 1, "", ""},
		{"stdout", []string{"echo", "hello"}, 0, "hello\n", ""},
		{"stderr", []string{"sh", "-c", "echo oops >&2; exit 3"}, 3, "", "oops\n"},
		{"both", []string{"sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
		{"missing in the shell", []string{"sh", "-c", "nosuch 2>/dev/null"}, 127, "", ""},
		{"killed", []string{"sh", "-c", "sleep 100 & kill -9 $!; wait $! 2>/dev/null"}, 137, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := do(t, s.CtrRun(t.Context(), append([]string{"--rm", img, name(t)}, tt.cmd...)...))
			if r.code != tt.code || r.stdout != tt.stdout || r.stderr != tt.stderr {
				t.Errorf("got %s\nwant exit code %d\nstdout: %s\nstderr: %s", r, tt.code, tt.stdout, tt.stderr)
			}
		})
	}
	if left := s.Clean(context.Background()); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestContainersHaveTheirOwnKernels(t *testing.T) {
	s := userStack(t)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	bootID := func() string {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}()
	var ids []string
	for i := range 2 {
		out := must(t, s.CtrRun(t.Context(), "--rm", img, fmt.Sprintf("%s-%d", name(t), i), "sh", "-c",
			"uname -r; cat /proc/sys/kernel/random/boot_id"))
		release, id, _ := strings.Cut(out, "\n")
		if release == unix.ByteSliceToString(u.Release[:]) {
			t.Errorf("the container runs the host's kernel %s", release)
		}
		ids = append(ids, id)
	}
	if ids[0] == ids[1] || ids[0] == bootID || ids[1] == bootID {
		t.Errorf("boot ids %q of two containers and %q of the host are not three", ids, bootID)
	}
}

func TestUser(t *testing.T) {
	s := userStack(t)
	archive, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const ref = "docker.io/library/debian:e2e-user"
	withUser, err := images.WithUser(t.Context(), archive, ref, "app", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), withUser); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		args  []string
		image string
		want  string
	}{
		{"USER of the image", nil, ref, "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)"},
		{"by number", []string{"--user", "1234:4321"}, img, "uid=1234 gid=4321 groups=4321"},
		{"by name", []string{"--user", "daemon"}, img, "uid=1(daemon) gid=1(daemon) groups=1(daemon)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := must(t, s.CtrRun(t.Context(), append(append([]string{"--rm"}, tt.args...), tt.image, name(t), "id")...))
			if strings.TrimSpace(out) != tt.want {
				t.Errorf("got %s, want %s", out, tt.want)
			}
		})
	}
}

func TestStdinReachesTheProcess(t *testing.T) {
	s := userStack(t)
	in := make([]byte, 3<<20)
	rand.Read(in)
	cmd := s.CtrRun(t.Context(), "--rm", img, name(t), "sha256sum")
	cmd.Stdin = bytes.NewReader(in)
	want := fmt.Sprintf("%x  -\n", sha256.Sum256(in))
	if got := must(t, cmd); got != want {
		t.Errorf("the process read %s, want %s", got, want)
	}
}

// A process that ends right after a lot of output loses none of it.
func TestOutputIsWhole(t *testing.T) {
	s := userStack(t)
	out := must(t, s.CtrRun(t.Context(), "--rm", img, name(t), "seq", "1", "300000"))
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 300000 {
		t.Fatalf("%d lines, want 300000", len(lines))
	}
	for i, l := range lines {
		if l != fmt.Sprint(i+1) {
			t.Fatalf("line %d is %q", i+1, l)
		}
	}
}

func TestExec(t *testing.T) {
	s := userStack(t)
	id := detached(t, s, "sleep", "1000")
	tests := []struct {
		name  string
		flags []string
		cmd   []string
		in    string
		code  int
		want  string
	}{
		{"output", nil, []string{"echo", "hi"}, "", 0, "hi\n"},
		{"exit code", nil, []string{"sh", "-c", "exit 7"}, "", 7, ""},
		{"same processes", nil, []string{"cat", "/proc/1/comm"}, "", 0, "sleep\n"},
		{"stdin", nil, []string{"cat"}, "some input", 0, "some input"},
		{"working directory", []string{"--cwd", "/usr"}, []string{"pwd"}, "", 0, "/usr\n"},
		{"user", []string{"--user", "1000"}, []string{"id", "-u"}, "", 0, "1000\n"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := s.CtrExec(t.Context(), append(append(append([]string{"--exec-id", fmt.Sprint("e", i)}, tt.flags...), id), tt.cmd...)...)
			cmd.Stdin = strings.NewReader(tt.in)
			if r := do(t, cmd); r.code != tt.code || r.stdout != tt.want {
				t.Errorf("got %s\nwant exit code %d, stdout %q", r, tt.code, tt.want)
			}
		})
	}
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				cmd := s.CtrExec(t.Context(), "--exec-id", fmt.Sprint("m", i), id, "echo", fmt.Sprint(i))
				if out, err := cmd.Output(); err != nil || string(out) != fmt.Sprintln(i) {
					t.Errorf("exec %d: %q, %v", i, out, err)
				}
			})
		}
		wg.Wait()
	})
}

// The agent's threads have a timer slack of their own, which processes inherit.
func TestTimerSlackIsTheKernels(t *testing.T) {
	s := userStack(t)
	id := name(t)
	nr := map[string]int{"amd64": 157, "arm64": 167}[runtime.GOARCH] // prctl's
	// 30 is PR_GET_TIMERSLACK, 29 PR_SET_TIMERSLACK, where 0 asks for the default.
	script := fmt.Sprintf(`print syscall(%[1]d, 30), " "; syscall(%[1]d, 29, 0); print syscall(%[1]d, 30), "\n"`, nr)
	const want = "50000 50000\n" // include/linux/init_task.h
	if r := do(t, s.CtrRun(t.Context(), "-d", img, id, "sh", "-c", "perl -e '"+script+"' >/slack; exec sleep 1000")); r.code != 0 {
		t.Fatal(r)
	}
	t.Cleanup(func() {
		_ = s.Ctr(context.Background(), "task", "delete", "--force", id).Run()
		_ = s.Ctr(context.Background(), "container", "delete", id).Run()
	})
	for _, tt := range []struct{ name, cmd, want string }{
		{"first process", "until [ -s /slack ]; do sleep 0.1; done; cat /slack", want},
		{"exec", "exec perl -e '" + script + "'", want},
	} {
		r := do(t, s.CtrExec(t.Context(), "--exec-id", "x", id, "sh", "-c", tt.cmd))
		if r.code != 0 || r.stdout != tt.want {
			t.Errorf("%s: got %s\nwant %q", tt.name, r, tt.want)
		}
	}
}

func TestKillAndDelete(t *testing.T) {
	s := userStack(t)
	for _, tt := range []struct {
		signal string
		code   int
	}{{"SIGTERM", 143}, {"SIGKILL", 137}, {"SIGUSR1", 9}} {
		t.Run(tt.signal, func(t *testing.T) {
			// The init of a pid namespace gets only signals that it handles: TERM's and USR1's traps.
			id := detached(t, s, "bash", "-c", "trap 'exit 143' TERM; trap 'exit 9' USR1; touch /ready; while :; do sleep 0.05; done")
			waitFor(t, "the traps", func() bool {
				return s.CtrExec(t.Context(), "--exec-id", "ready", id, "test", "-e", "/ready").Run() == nil
			})
			must(t, s.Ctr(t.Context(), "task", "kill", "--signal", tt.signal, id))
			waitFor(t, "the end of the task", func() bool {
				return strings.Contains(must(t, s.Ctr(t.Context(), "task", "list")), "STOPPED")
			})
			// ctr tells the exit code in a warning only.
			if r := do(t, s.Ctr(t.Context(), "task", "delete", id)); !strings.Contains(r.stderr, fmt.Sprintf("non-zero exit code %d\"", tt.code)) {
				t.Errorf("task delete: %s\nwant exit code %d", r, tt.code)
			}
			if left := s.Processes(); len(left) > 0 {
				t.Errorf("processes after the task was deleted: %v", left)
			}
		})
	}
}

// What a container wrote is there when it is started again, and its disk is clean in
// between, though nobody unmounted it.
func TestWritableLayerOutlivesTheTask(t *testing.T) {
	s := userStack(t)
	id := name(t)
	defer remove(t, s, id)
	must(t, s.CtrRun(t.Context(), "-d", img, id, "bash", "-c",
		`if [ -e /kept ]; then cat /kept > /second; else echo "$RANDOM$RANDOM" > /kept; fi; sleep 1000`))
	waitFor(t, "the file", func() bool {
		return s.CtrExec(t.Context(), "--exec-id", "w", id, "test", "-s", "/kept").Run() == nil
	})
	first := must(t, s.CtrExec(t.Context(), "--exec-id", "r", id, "cat", "/kept"))
	_ = do(t, s.Ctr(t.Context(), "task", "delete", "--force", id))
	disks, err := filepath.Glob(filepath.Join(s.Dir, "snapshots", "snapshots", "*", "rw.img"))
	if err != nil || len(disks) == 0 {
		t.Fatalf("writable images: %q, %v", disks, err)
	}
	for _, d := range disks {
		must(t, exec.CommandContext(t.Context(), "e2fsck", "-fn", d))
		if about := must(t, exec.CommandContext(t.Context(), "dumpe2fs", "-h", d)); strings.Contains(about, "needs_recovery") {
			t.Errorf("%s needs a replay of its journal:\n%s", d, about)
		}
	}
	must(t, s.Ctr(t.Context(), "task", "start", "--fifo-dir", s.Dir+"/fifo", "--detach", id))
	waitFor(t, "the second file", func() bool {
		return s.CtrExec(t.Context(), "--exec-id", "w2", id, "test", "-s", "/second").Run() == nil
	})
	if second := must(t, s.CtrExec(t.Context(), "--exec-id", "r2", id, "cat", "/second")); second != first {
		t.Errorf("the second run found %q, the first wrote %q", second, first)
	}
}
