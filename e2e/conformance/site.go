package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/applevm/applevm/e2e/stack"
)

// site is a directory of its own in which the suite runs: the checkout may be where
// an ordinary user cannot read, and all that is left of a run can be seen in one place.
type site struct {
	dir  string
	root bool
}

func newSite(checkout string, p profile) (_ *site, retErr error) {
	// Short: the suite puts sockets under TMPDIR only if that has at most 26 bytes.
	dir, err := os.MkdirTemp("/tmp", "cf")
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, root: p.root}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, os.RemoveAll(dir))
		}
	}()
	for _, d := range []string{"bin", "guest", "t", "home"} {
		if err := os.Mkdir(s.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	shim := cmp.Or(p.shim, filepath.Join("bin", shimName))
	files := map[string]string{filepath.Join(checkout, shim): s.path("bin", shimName)}
	for _, b := range []string{"shimtest.test", "testbin"} {
		files[filepath.Join(checkout, "bin", b)] = s.path("bin", b)
	}
	images, err := filepath.Glob(filepath.Join(checkout, "build", "guest", runtime.GOARCH, "*"))
	if err != nil || len(images) == 0 {
		return nil, errors.New("no guest image: run make guest")
	}
	for _, f := range images {
		files[f] = s.path("guest", filepath.Base(f))
	}
	for from, to := range files {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, b, 0o755)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: run make conformance", err)
		}
	}
	if err := os.WriteFile(s.path("applevm.toml"), fmt.Appendf(nil, "[guest]\ndir = %q\n", s.path("guest")), 0o644); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	if !s.unprivileged() {
		return s, nil
	}
	return s, errors.Join(os.Chown(s.path("t"), stack.Nobody, stack.Nobody), os.Chown(s.path("home"), stack.Nobody, stack.Nobody))
}

func (s *site) path(elem ...string) string { return filepath.Join(append([]string{s.dir}, elem...)...) }

func (s *site) unprivileged() bool { return os.Getuid() == 0 && !s.root }

// close ends what still runs and removes the directory; both is a failure if there
// was something.
func (s *site) close() error {
	var errs []error
	left, err := s.processes()
	errs = append(errs, err)
	for _, p := range left {
		errs = append(errs, fmt.Errorf("left running: %s (pid %d)", p.name, p.pid))
		if proc, err := os.FindProcess(p.pid); err == nil {
			_ = proc.Kill()
		}
	}
	files, err := os.ReadDir(s.path("t"))
	errs = append(errs, err)
	for _, f := range files {
		if f.Name() != "shimtest-runc" { // the suite's own, for runc
			errs = append(errs, fmt.Errorf("left behind: %s", s.path("t", f.Name())))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// test runs the suite's test binary.
func (s *site) test(ctx context.Context, verbose bool, flags []string) (results, error) {
	argv := append([]string{s.path("bin", "shimtest.test"), "-test.v", "-shim", s.path("bin", shimName)}, flags...)
	if s.unprivileged() {
		id := strconv.Itoa(stack.Nobody)
		argv = append([]string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups",
			"--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = s.dir
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + s.path("home"), "XDG_CACHE_HOME=" + s.path("home"), "TMPDIR=" + s.path("t"),
		"APPLEVM_CONFIG=" + s.path("applevm.toml"), "SHIMTEST_TESTBIN=" + s.path("bin", "testbin"),
	}
	var b bytes.Buffer
	cmd.Stdout = &b
	if verbose {
		cmd.Stdout = io.MultiWriter(&b, os.Stdout)
	}
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	return parse(b.String()), err
}

// results is what a run of the test binary says.
type results struct {
	output          string
	passed          int
	failed, skipped []string
}

var outcome = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)

// parse counts the tests that have no subtests: others only sum up.
func parse(output string) results {
	r := results{output: output}
	all := outcome.FindAllStringSubmatch(output, -1)
	for _, m := range all {
		parent := false
		for _, n := range all {
			parent = parent || strings.HasPrefix(n[2], m[2]+"/")
		}
		switch {
		case m[1] == "FAIL": // also of a parent: it can have a failure of its own
			r.failed = append(r.failed, m[2])
		case parent:
		case m[1] == "PASS":
			r.passed++
		case isLeftOut(m[2]):
		default:
			r.skipped = append(r.skipped, m[2])
		}
	}
	return r
}

// isLeftOut tells whether a skipped test stands for a suite that leftOut names.
func isLeftOut(test string) bool {
	for _, l := range leftOut {
		if l.suite != "" && strings.HasSuffix(test, "/"+l.suite) {
			return true
		}
	}
	return false
}

// matching returns what re finds in the output's lines.
func (r results) matching(re string) []string {
	return regexp.MustCompile(re).FindAllString(r.output, -1)
}
