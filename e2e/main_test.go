// Package e2e tests applevm as its users meet it: real containerd, real clients,
// real images, real virtual machines.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// img is the Debian image that every shared stack has.
const img = images.DebianRef

// shared are the stacks that tests use together, one after the other: a start and an import
// each would take longer than most tests.
var shared struct {
	user, root sharedStack
}

type sharedStack struct {
	turns
	once  sync.Once
	s     *stack.Stack
	err   error
	tests map[string]bool // that used it
}

func TestMain(m *testing.M) {
	if err := allAtOnce(); err != nil {
		panic(err)
	}
	code := m.Run()
	for _, s := range []*sharedStack{&shared.user, &shared.root} {
		if s.s == nil {
			continue
		}
		if left := s.s.Clean(context.Background()); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "left behind after all tests: %q\n", left)
			code = 1
		}
		if s == &shared.user {
			if err := s.report(); err != nil {
				fmt.Fprintln(os.Stderr, "report:", err)
				code = 1
			}
		}
		if code != 0 {
			fmt.Fprintln(os.Stderr, s.s.Logs())
		}
		if err := s.s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close the stack:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// userStack returns the shared stack of an ordinary user without capabilities, who has no
// more than a user of macOS (mac_test.go).
func userStack(t *testing.T) *stack.Stack {
	return shared.user.get(t, stack.Options{Unprivileged: true, Bare: true})
}

// rootStack returns the shared stack of root, for nerdctl.
func rootStack(t *testing.T) *stack.Stack {
	notWithVZ(t)
	if os.Getuid() != 0 {
		t.Fatal("nerdctl's tests need root on Linux: run them with sudo")
	}
	return shared.root.get(t, stack.Options{})
}

func (ss *sharedStack) get(t *testing.T, opts stack.Options) *stack.Stack {
	t.Helper()
	ss.takeTurn(t)
	ss.once.Do(func() {
		ctx := context.Background()
		archive, err := images.Debian(ctx)
		if err != nil {
			ss.err = err
			return
		}
		if ss.s, ss.err = stack.Start(ctx, opts); ss.err == nil {
			ss.err = ss.s.Import(ctx, archive)
		}
	})
	if ss.err != nil {
		t.Fatal(ss.err)
	}
	if ss.tests == nil {
		ss.tests = map[string]bool{}
	}
	ss.tests[t.Name()] = true
	return ss.s
}

// withVZ tells that machines are macOS's driver's: on a Mac, and on the stand-in for its framework (make vz-sim).
func withVZ() bool { return runtime.GOOS == "darwin" || os.Getenv("APPLEVM_TEST_SHIM") != "" }

// notWithVZ leaves out what root alone can do on Linux, and nobody on macOS.
func notWithVZ(t *testing.T) {
	t.Helper()
	if withVZ() {
		t.Skip("macOS's driver has neither network namespaces nor root directories of processes, without which root runs no machine")
	}
}

// newStack starts a stack for one test, with the Debian image in it. It takes turns with the
// tests of the shared one of the same user.
func newStack(t *testing.T, opts stack.Options) *stack.Stack {
	t.Helper()
	if !opts.Unprivileged {
		notWithVZ(t)
	}
	if opts.Unprivileged && !withVZ() { // with macOS's driver there are no tests of root's
		shared.user.takeTurn(t)
	} else {
		shared.root.takeTurn(t)
	}
	s, err := stack.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.Logs())
		}
		if left := s.Clean(context.Background()); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	archive, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	return s
}

// result is what a command did.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// limit bounds any one command; on a loaded machine a start takes seconds.
const limit = 2 * time.Minute

// do runs cmd to its end.
func do(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Start()
	if err == nil {
		timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
		err = cmd.Wait()
		timer.Stop()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.Exited():
	default:
		t.Fatalf("%s: %v\nstdout: %s\nstderr: %s", strings.Join(cmd.Args, " "), err, &stdout, &stderr)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// finish runs a command of ctx to its end.
func finish(ctx context.Context, cmd *exec.Cmd) (result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		const most = 500 // nerdctl may have said the same a thousand times
		return result{}, fmt.Errorf("did not end: %q\nstdout: %.*s\nstderr: %.*s", cmd.Args, most, &stdout, most, &stderr)
	case err == nil, errors.As(err, &exit) && exit.Exited():
	default:
		return result{}, fmt.Errorf("%q: %w\nstdout: %s\nstderr: %s", cmd.Args, err, &stdout, &stderr)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, nil
}

// started starts cmd with pipes to its standard input and output.
func started(t *testing.T, cmd *exec.Cmd) (in io.WriteCloser, out io.ReadCloser) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if out, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return in, out
}

// piped is started, for what is over within limit.
func piped(t *testing.T, cmd *exec.Cmd) (in io.WriteCloser, out io.ReadCloser) {
	t.Helper()
	in, out = started(t, cmd)
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() { timer.Stop() })
	return in, out
}

// must runs cmd and requires exit code 0; it returns the standard output.
func must(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	r := do(t, cmd)
	if r.code != 0 {
		t.Fatalf("%s: %s", strings.Join(cmd.Args, " "), r)
	}
	return r.stdout
}

// name makes a container's id from the test's name.
func name(t *testing.T) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name())
}

// detached starts a container with ctr that is removed at the test's end.
func detached(t *testing.T, s *stack.Stack, args ...string) string {
	t.Helper()
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	must(t, s.CtrRun(t.Context(), append([]string{"-d", img, id}, args...)...))
	return id
}

// remove takes a container away, whatever its state.
func remove(t *testing.T, s *stack.Stack, id string) {
	t.Helper()
	ctx := context.Background() // the test's own has ended
	_ = s.Ctr(ctx, "task", "delete", "--force", id).Run()
	if r := do(t, s.Ctr(ctx, "container", "delete", id)); r.code != 0 {
		t.Errorf("remove %s: %s", id, r)
	}
	if slices.Contains(strings.Fields(must(t, s.Ctr(ctx, "container", "list", "-q"))), id) {
		t.Errorf("container %s is still there", id)
	}
}

// userDir is a new directory of the user who runs userStack, for containers to share.
func userDir(t *testing.T, s *stack.Stack, name string) string {
	t.Helper()
	dir := filepath.Join(s.Dir, "tmp", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	giveToUser(t, dir)
	return dir
}

// giveToUser gives a file to that user, who without root is the test's own.
func giveToUser(t *testing.T, path string) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	if err := os.Chown(path, stack.Nobody, stack.Nobody); err != nil {
		t.Fatal(err)
	}
}

// busyboxIn puts busybox into a directory that containers share, as the user's.
func busyboxIn(t *testing.T, dir string) string {
	t.Helper()
	unpacked, err := images.Busybox(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "busybox")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	giveToUser(t, path)
	return path
}

// write writes a file of the user's, with the directories that it is in.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	giveToUser(t, path)
}

// lockedBuffer is a buffer that is read while a command writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
