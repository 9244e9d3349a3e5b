package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// The matrix runs the same nerdctl commands with applevm and with runc, in one
// containerd, and compares what they print and how they end. It is made of
// scenes, so that many commands share a machine; every step that has a name is
// a row. The rows that may differ are in matrix_differences_test.go.

// scene is steps in their order; each side runs them by itself.
type scene struct {
	name  string
	steps []step
}

// step is one nerdctl command, or a function.
type step struct {
	// name is the row's; a step without one is preparation and must succeed.
	name string
	// args are nerdctl's. "run" and "create" get the side's runtime and --net none.
	// "{dir}" is a directory of the side's own, "{registry}" its registry.
	args []string
	// stdin is what the command reads.
	stdin string
	// keys are typed at a terminal, one after another, each when what comes
	// before "→" in it has been seen. The command runs on a terminal if there are any.
	keys []string
	// sections splits the output at lines that begin with "== " into rows.
	sections bool
	// until repeats the command until its output contains this.
	until string
	// normal makes equal what has reason to differ.
	normal func(string) string
	// only leaves out what is not to be compared: "code" is the exit code alone,
	// "stdout" leaves stderr out.
	only string
	// fails is set where the exit code alone is compared and is not to be 0.
	fails bool
	// limit bounds the command; 0 is commandLimit.
	limit time.Duration
	// do is done instead of a command.
	do func(sd *side) (result, error)
}

// side is one of the two runtimes. Each has a namespace of containerd, so that
// both can use the same names.
type side struct {
	t                    *testing.T
	s                    *stack.Stack
	name, ns             string
	runtime, snapshotter string
	dir                  string
	registry             string
	rows                 map[string]result
	order                []string
}

// cmd prepares a nerdctl command.
func (sd *side) cmd(ctx context.Context, args ...string) *exec.Cmd {
	all := []string{"--namespace", sd.ns, "--snapshotter", sd.snapshotter}
	for i, a := range args {
		a = strings.NewReplacer("{dir}", sd.dir, "{registry}", sd.registry, "{runtime}", sd.runtime).Replace(a)
		all = append(all, a)
		if i == 0 && (a == "run" || a == "create") {
			all = append(all, "--runtime", sd.runtime)
			if !slices.Contains(args, "--net") {
				all = append(all, "--net", "none")
			}
		}
	}
	return sd.s.Nerdctl(ctx, all...)
}

// commandLimit bounds one command; emulated machines on a busy host are slow.
const commandLimit = 2 * time.Minute

// nerdctl runs a command to its end.
func (sd *side) nerdctl(stdin string, args ...string) (result, error) {
	return sd.within(commandLimit, stdin, args...)
}

// within runs a command for at most so long.
func (sd *side) within(limit time.Duration, stdin string, args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := sd.cmd(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	return finish(ctx, cmd)
}

// terminal runs a command on a terminal and types keys.
func (sd *side) terminal(keys []string, args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	pty, slave, err := console.NewPty()
	if err != nil {
		return result{}, err
	}
	defer pty.Close()
	tty, err := os.OpenFile(slave, os.O_RDWR, 0)
	if err != nil {
		return result{}, err
	}
	if err := pty.Resize(console.WinSize{Width: 100, Height: 30}); err != nil {
		return result{}, err
	}
	cmd := sd.cmd(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	tty.Close()
	if err != nil {
		return result{}, err
	}
	var mu sync.Mutex
	var out bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := pty.Read(b)
			mu.Lock()
			out.Write(b[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	seen := func(from int, what string) (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		i := strings.Index(out.String()[from:], what)
		return from + i + len(what), i >= 0
	}
	at := 0
	for _, k := range keys {
		before, text, _ := strings.Cut(k, "→")
		for {
			next, ok := seen(at, before)
			if ok {
				at = next
				break
			}
			if ctx.Err() != nil {
				_ = cmd.Wait()
				return result{}, fmt.Errorf("%q: no %q in %q", cmd.Args, before, out.String())
			}
			time.Sleep(10 * time.Millisecond)
		}
		if _, err := pty.Write([]byte(text)); err != nil {
			return result{}, err
		}
	}
	err = cmd.Wait()
	select {
	case <-read:
	case <-time.After(10 * time.Second):
	}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || !exit.Exited()) {
		return result{}, fmt.Errorf("%q: %w: %q", cmd.Args, err, out.String())
	}
	mu.Lock()
	defer mu.Unlock()
	return result{stdout: out.String(), code: cmd.ProcessState.ExitCode()}, nil
}

// play runs a scene's steps and notes the rows.
func (sd *side) play(sc scene) error {
	for i, st := range sc.steps {
		began := time.Now()
		r, err := sd.step(st)
		if took := time.Since(began); took > 10*time.Second {
			sd.t.Logf("%s: %s %q took %s", sd.name, st.name, st.args, took)
		}
		switch {
		case err != nil && st.name == "":
			return fmt.Errorf("%s: %s: step %d: %w", sd.name, sc.name, i, err)
		case err != nil:
			// A row too, and the others go on.
			r = result{stderr: err.Error(), code: -1}
			st.sections = false
		}
		if st.name == "" {
			if r.code != 0 && st.only != "any" {
				return fmt.Errorf("%s: %s: step %d %q: %s", sd.name, sc.name, i, st.args, r)
			}
			continue
		}
		sd.note(st, r)
	}
	return nil
}

func (sd *side) step(st step) (result, error) {
	once := func() (result, error) {
		switch {
		case st.do != nil:
			return st.do(sd)
		case st.keys != nil:
			return sd.terminal(st.keys, st.args...)
		}
		return sd.within(cmp.Or(st.limit, commandLimit), st.stdin, st.args...)
	}
	r, err := once()
	for end := time.Now().Add(commandLimit); st.until != "" && err == nil && !strings.Contains(r.stdout+r.stderr, st.until); r, err = once() {
		if time.Now().After(end) {
			return r, fmt.Errorf("%q did not come: %s", st.until, r)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return r, err
}

// note makes rows of a result.
func (sd *side) note(st step, r result) {
	normal := func(s string) string {
		s = strings.NewReplacer(sd.dir, "DIR", sd.registry, "REGISTRY", sd.runtime, "RUNTIME", sd.s.Dir, "STACK", "etc/default/", "etc/default/", "/"+sd.ns+"/", "/NAMESPACE/").Replace(s)
		s = normalise(s)
		if st.normal != nil {
			s = st.normal(s)
		}
		return s
	}
	r.stdout, r.stderr = normal(r.stdout), normal(r.stderr)
	switch st.only {
	case "code":
		if st.fails != (r.code != 0) && sd.snapshotter == "overlayfs" {
			sd.t.Errorf("%s: with %s: %s", st.name, sd.name, r)
		}
		r.stdout, r.stderr = "", ""
	case "stdout":
		r.stderr = ""
	}
	add := func(name string, r result) {
		if _, dup := sd.rows[name]; dup {
			sd.t.Errorf("two rows are called %q", name)
		}
		sd.rows[name] = r
		sd.order = append(sd.order, name)
	}
	if !st.sections {
		add(st.name, r)
		return
	}
	parts := strings.Split("\n"+r.stdout, "\n== ")
	add(st.name, result{parts[0], r.stderr, r.code})
	for _, p := range parts[1:] {
		name, body, _ := strings.Cut(p, "\n")
		add(name, result{stdout: body})
	}
}

var normals = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`time="[^"]*" `), ""},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "ID"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "SHORTID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| ?[+-]\d\d:?\d\d( UTC)?)?`), "TIME"},
	// A signal for a process that has just ended: SIGCHLD and SIGURG of the client's own, most often.
	{regexp.MustCompile(`(?m)^level=error msg="forward signal child exited".*\n`), ""},
	{regexp.MustCompile(`\[\d{4}\]`), "[SECONDS]"}, // of a log line on a terminal
	{regexp.MustCompile(`(Less than a|About a|\d+) (second|minute)s?( ago)?`), "AGE"},
	// What one kernel has and another has not: a host's and a guest's.
	{regexp.MustCompile(`,inode64\b`), ""},
	{regexp.MustCompile(`(?m)^.* /proc/kcore$\n?|^/proc/kcore tmpfs.*$\n?`), ""},
}

func normalise(s string) string {
	for _, n := range normals {
		s = n.re.ReplaceAllString(s, n.to)
	}
	return s
}

// clear removes all containers of the side.
func (sd *side) clear() {
	r, err := sd.nerdctl("", "ps", "-aq")
	if err != nil {
		sd.t.Error(err)
		return
	}
	if ids := strings.Fields(r.stdout); len(ids) > 0 {
		if r, err := sd.nerdctl("", append([]string{"rm", "-f"}, ids...)...); err != nil || r.code != 0 {
			sd.t.Errorf("%s: remove containers: %v: %s", sd.name, err, r)
		}
	}
}

func TestMatrix(t *testing.T) {
	s := rootStack(t)
	sides := []*side{
		{name: "applevm", ns: stack.Namespace, runtime: "io.containerd.applevm.v1", snapshotter: "applevm"},
		{name: "runc", ns: "runc", runtime: "io.containerd.runc.v2", snapshotter: "overlayfs"},
	}
	archive, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sd := range sides {
		sd.s, sd.rows = s, map[string]result{}
		sd.registry = serveRegistry(t)
	}
	in, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	imp := s.Ctr(t.Context(), "--namespace", "runc", "image", "import", "--snapshotter", "overlayfs", "-")
	imp.Stdin = in
	if out, err := imp.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	played := map[string]bool{}
	for _, sc := range matrix {
		t.Run(sc.name, func(t *testing.T) {
			var wg sync.WaitGroup
			errs := make([]error, len(sides))
			for i, sd := range sides {
				sd.t, sd.dir, sd.order = t, filepath.Join(t.TempDir(), "files"), nil
				if err := os.MkdirAll(sd.dir, 0o755); err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					defer sd.clear()
					errs[i] = sd.play(sc)
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			for _, row := range sides[0].order {
				played[row] = true
				compare(t, row, sides[0].rows[row], sides[1].rows[row])
			}
			if !slices.Equal(sides[0].order, sides[1].order) {
				t.Errorf("rows %q and %q", sides[0].order, sides[1].order)
			}
			if left := s.Clean(context.Background()); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
	if len(played) > 0 {
		t.Logf("%d rows", len(played))
	}
}

// compare judges one row.
func compare(t *testing.T, row string, got, want result) {
	t.Helper()
	d, accepted := accepted(row)
	same := got == want
	switch {
	case same && accepted && !d.sometimes:
		t.Errorf("%s: there is no difference any more: remove it from the table of differences", row)
	case !same && !accepted:
		t.Errorf("%s differs (- runc, + applevm):\n%s", row, lineDiff(want.String(), got.String()))
	case !same && d.want != "" && !strings.Contains(got.stdout+got.stderr, d.want):
		t.Errorf("%s: applevm does not say %q but %s", row, d.want, got)
	case !same:
		t.Logf("%s differs, as it may (- runc, + applevm):\n%s", row, lineDiff(want.String(), got.String()))
	}
}

// lineDiff lists the lines that only one of two texts has.
func lineDiff(a, b string) string {
	var out strings.Builder
	only := func(sign, a, b string) {
		have := map[string]int{}
		for l := range strings.Lines(b + "\n") {
			have[l]++
		}
		n := 0
		for l := range strings.Lines(a + "\n") {
			if have[l]--; have[l] < 0 {
				if n++; n > 15 {
					fmt.Fprintf(&out, "%s and more\n", sign)
					return
				}
				fmt.Fprintf(&out, "%s %s\n", sign, strings.TrimSuffix(l, "\n"))
			}
		}
	}
	only("-", a, b)
	only("+", b, a)
	if out.Len() == 0 {
		return "the order of lines\n" + b
	}
	return out.String()
}
