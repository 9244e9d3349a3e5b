//go:build soak

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/stack"
)

// Soak tests are run by `make soak`, each for SOAK. One that looks for growth calls
// soak; its name begins with TestSoak.

// soakEnv holds how long each soak test lasts.
const soakEnv = "APPLEVM_SOAK"

// gauges are what must not grow, by what it is.
type gauges map[string]int64

// slack is how far each kind of gauge, by the first word of its name, may be above that
// of an earlier part of the run. Go's heap breathes, and threads are made as needed.
var slack = map[string]int64{"memory": 16 << 20, "descriptors": 4, "threads": 6, "files": 8, "processes": 0}

// soak calls step for as long as APPLEVM_SOAK says, with the number of the round, and
// requires that what measure returns after each does not grow.
func soak(t *testing.T, measure func() gauges, step func(n int)) {
	t.Helper()
	d, err := time.ParseDuration(os.Getenv(soakEnv))
	if err != nil {
		t.Fatalf("%s is to say how long, as 10m: %v", soakEnv, err)
	}
	var all []gauges
	for end := time.Now().Add(d); time.Now().Before(end) && !t.Failed(); {
		step(len(all))
		all = append(all, measure())
	}
	t.Logf("%d rounds", len(all))
	for name, values := range parts(all) {
		t.Logf("%s: %v", name, values)
	}
	if err := grown(all); err != nil {
		t.Error(err)
	}
}

// parts returns the least of each gauge in each quarter of the run.
func parts(all []gauges) map[string][4]int64 {
	found := map[string][4]int64{}
	for q := range 4 {
		for i, g := range all[len(all)*q/4 : len(all)*(q+1)/4] {
			for name, v := range g {
				p := found[name]
				if i == 0 || v < p[q] {
					p[q] = v
				}
				found[name] = p
			}
		}
	}
	return found
}

// grown compares the last quarter with the second; the first is warming up. The least
// counts, which is what remains when nothing is under way.
func grown(all []gauges) error {
	const enough = 8
	if len(all) < enough {
		return fmt.Errorf("too short to tell whether something grows: %d rounds, %d needed", len(all), enough)
	}
	var errs []error
	for name, p := range parts(all) {
		kind, _, _ := strings.Cut(name, " ")
		if p[3] > p[1]+slack[kind] {
			errs = append(errs, fmt.Errorf("%s grew from %d to %d", name, p[1], p[3]))
		}
	}
	return errors.Join(errs...)
}

// of adds the gauges of a process, which is called name.
func (g gauges) of(t *testing.T, name string, pid int) {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	g["memory of "+name] = int64(rss(t, pid))
	g["descriptors of "+name] = int64(len(fds))
	g["threads of "+name] = int64(len(tasks))
}

// ofStack adds what a stack has: its daemons, its shims, its files.
func (g gauges) ofStack(t *testing.T, s *stack.Stack) {
	t.Helper()
	g.of(t, "containerd", s.Containerd())
	shims := s.Shims()
	g["processes of shims and machines"] = int64(len(s.Processes()))
	for i, p := range shims {
		g.of(t, "shim "+strconv.Itoa(i), p.PID)
	}
	var files int64
	for _, dir := range []string{"state", "s", "fifo", "tmp", "snapshots"} {
		_ = filepath.WalkDir(filepath.Join(s.Dir, dir), func(string, fs.DirEntry, error) error { files++; return nil })
	}
	g["files"] = files
}

// run runs a command that is to succeed, and keeps a long run's log short.
func quietly(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if r := do(t, cmd); r.code != 0 {
		t.Fatalf("%q: %s", cmd.Args[1:], r)
	}
}

func TestGrown(t *testing.T) {
	run := func(of func(i int) int64) []gauges {
		var all []gauges
		for i := range 40 {
			all = append(all, gauges{"descriptors of x": of(i)})
		}
		return all
	}
	for _, tt := range []struct {
		name string
		of   func(i int) int64
		want bool
	}{
		{"steady", func(i int) int64 { return 10 + int64(i%5) }, false},
		{"warming up", func(i int) int64 { return int64(min(i, 10)) }, false},
		{"a leak", func(i int) int64 { return int64(i) }, true},
	} {
		if got := grown(run(tt.of)) != nil; got != tt.want {
			t.Errorf("%s: grown is %v", tt.name, got)
		}
	}
	if grown(make([]gauges, 3)) == nil {
		t.Error("three rounds are enough")
	}
}

// Execs, of all kinds, in one container.
func TestSoakExecs(t *testing.T) {
	s := newStack(t, stack.Options{})
	ctx := t.Context()
	quietly(t, s.NerdctlRun(ctx, "-d", "--name", "box", img, "sleep", "1000000"))
	defer func() { _ = s.Nerdctl(context.Background(), "rm", "-f", "box").Run() }()
	soak(t, func() gauges { g := gauges{}; g.ofStack(t, s); return g }, func(n int) {
		quietly(t, s.Nerdctl(ctx, "exec", "box", "true"))
		quietly(t, s.Nerdctl(ctx, "exec", "box", "head", "-c", "1000000", "/dev/zero"))
		if r := do(t, s.Nerdctl(ctx, "exec", "box", "nosuch")); r.code == 0 {
			t.Errorf("exec of nothing: %s", r)
		}
		if n%8 == 0 {
			quietly(t, s.Nerdctl(ctx, "pause", "box"))
			quietly(t, s.Nerdctl(ctx, "unpause", "box"))
		}
		time.Sleep(100 * time.Millisecond)
	})
}

// Containers that come and go.
func TestSoakContainers(t *testing.T) {
	s := newStack(t, stack.Options{})
	ctx := t.Context()
	soak(t, func() gauges {
		if left := s.Clean(context.Background()); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		g := gauges{}
		g.ofStack(t, s)
		return g
	}, func(n int) {
		quietly(t, s.NerdctlRun(ctx, "--rm", img, "echo", "hi"))
		name := fmt.Sprintf("c%d", n)
		quietly(t, s.NerdctlRun(ctx, "-d", "--name", name, img, "sleep", "1000"))
		quietly(t, s.Nerdctl(ctx, "rm", "-f", name))
		if r := do(t, s.NerdctlRun(ctx, "--rm", img, "nosuch")); r.code == 0 {
			t.Errorf("run of nothing: %s", r)
		}
	})
}

// containerd that is killed again and again, under a container that runs on.
func TestSoakContainerdRestarts(t *testing.T) {
	s := newStack(t, stack.Options{})
	ctx := t.Context()
	quietly(t, s.NerdctlRun(ctx, "-d", "--name", "web", img, "sh", "-c", "while :; do echo a line; sleep 0.1; done"))
	defer func() { _ = s.Nerdctl(context.Background(), "rm", "-f", "web").Run() }()
	soak(t, func() gauges { g := gauges{}; g.ofStack(t, s); return g }, func(int) {
		restartContainerd(t, s, nil)
		quietly(t, s.Nerdctl(ctx, "exec", "web", "true"))
	})
}

// A machine that is stopped for a minute, as by a host that sleeps, and its clock.
func TestSoakClock(t *testing.T) {
	s := newStack(t, stack.Options{})
	id := name(t)
	c := startClock(t, s.CtrRun(t.Context(), img, id, "bash", "-c", tellTime))
	defer remove(t, s, id)
	c.right(t, "at the start")
	soak(t, func() gauges { g := gauges{}; g.ofStack(t, s); return g }, func(n int) {
		if n%8 == 0 {
			stopVMM(t, s, time.Minute)
			c.becomesRight(t, "after a minute's stop")
		}
		time.Sleep(5 * time.Second)
		c.right(t, "now and then")
	})
}
