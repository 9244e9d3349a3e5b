// Command conformance runs containerd's own conformance and stress suite for shims
// (github.com/containerd/shimtest, unmodified; see tools/shimtest) against
// bin/containerd-shim-applevm-v1, without a containerd, and prints what passed. While
// the stress lasts it measures the shims and machines, and fails if something grows.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/applevm/applevm/e2e/stack"
)

func main() {
	var o options
	flag.DurationVar(&o.stress, "stress", 10*time.Minute, "how long to run the stress suite, half of it whole containers and half of it execs; 0 leaves it out")
	flag.DurationVar(&o.exec, "exec-timeout", time.Minute, "how long an exec of the stress may take, up to 32 MiB of output and four at once: the suite's own 5s (0) are too short for an emulated processor")
	flag.StringVar(&o.run, "run", "", "run only the tests of the suite whose name matches this `regexp` (as go test -run, below TestShim)")
	names := flag.String("profiles", "images", "comma-separated `list` of: "+strings.Join(profileNames(), ", "))
	flag.BoolVar(&o.verbose, "v", false, "print all that the suite prints")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, os.Stdout, o, strings.Split(*names, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		cancel()
		os.Exit(1)
	}
}

type options struct {
	stress  time.Duration
	exec    time.Duration
	run     string
	verbose bool
}

// profile is a way in which the suite hands a shim its containers.
type profile struct {
	name string
	what string
	// flags are the test binary's.
	flags []string
	// root runs the suite as root: only then it makes host overlays.
	root bool
	// shim is the shim's file in the checkout; empty is bin's.
	shim string
	// leftOut is what it leaves out besides what all do.
	leftOut []omission
}

const (
	shimName = "containerd-shim-applevm-v1"
	standIn  = "build/vzsim/" + shimName // by make vz-sim
)

var profiles = []profile{
	{name: "images", what: "the root file system as images, to be stacked by the shim (format_mounts on), as an ordinary user", flags: []string{"-format-mounts"}},
	{name: "directory", what: "the root file system as a directory (format_mounts off), as an ordinary user in a user namespace"},
	{name: "overlay", what: "the root file system as an overlay on the host (format_mounts off), as root", root: true},
	{name: "vz", what: "as images, with macOS's driver on the stand-in for its framework", flags: []string{"-format-mounts"}, shim: standIn, leftOut: []omission{
		{test: "HundredLayers", why: "a machine of the framework's has fewer disks; applevm-snapshotter merges the layers of such an image"},
	}},
}

func profileNames() []string {
	var names []string
	for _, p := range profiles {
		names = append(names, p.name)
	}
	return names
}

// omission is a part of the suite that is not run.
type omission struct{ suite, test, why string }

// leftOut is what no profile runs.
var leftOut = []omission{
	{suite: "transfer", why: "copying files by a transfer service in the shim is nerdbox's own protocol; no client of containerd's speaks it to a shim"},
	{suite: "uds", why: "mounts of type \"uds\" (a socket of the host) are nerdbox's own; not implemented"},
	{suite: "net", why: "a container without a network namespace is to reach the host's 127.0.0.1: machines have no network of the host's"},
}

func run(ctx context.Context, out io.Writer, o options, names []string) error {
	root, err := stack.Checkout()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		p, err := profileNamed(name)
		if err != nil {
			return err
		}
		if err := runProfile(ctx, out, root, p, o); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	return errors.Join(errs...)
}

func profileNamed(name string) (profile, error) {
	for _, p := range profiles {
		if p.name == name {
			return p, nil
		}
	}
	return profile{}, fmt.Errorf("there is no profile %q: use %s", name, strings.Join(profileNames(), ", "))
}

func runProfile(ctx context.Context, out io.Writer, root string, p profile, o options) (retErr error) {
	if p.root && os.Getuid() != 0 {
		fmt.Fprintf(out, "%s: left out, it needs root\n", p.name)
		return nil
	}
	s, err := newSite(root, p)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, s.close()) }()
	fmt.Fprintf(out, "%s: %s\n", p.name, p.what)

	var suites, tests []string
	omitted := slices.Concat(leftOut, p.leftOut)
	for _, l := range omitted {
		if l.suite != "" {
			suites = append(suites, l.suite)
		} else {
			tests = append(tests, regexp.QuoteMeta(l.test))
		}
	}
	flags := append([]string{"-skip", strings.Join(suites, ",")}, p.flags...)
	start := time.Now()
	res, err := s.test(ctx, o.verbose, append(flags, "-test.run", "^TestShim$/"+o.run, "-test.skip", "^TestShim$/^("+strings.Join(tests, "|")+")$", "-test.timeout", "15m"))
	fmt.Fprintf(out, "  %d passed, %d failed, %d skipped by the suite in %v\n", res.passed, len(res.failed), len(res.skipped), time.Since(start).Round(time.Second))
	for _, l := range omitted {
		fmt.Fprintf(out, "  left out: %s%s: %s\n", l.suite, l.test, l.why)
	}
	if again := onlyTimed(res.failed); err != nil && len(again) > 0 {
		err = repeat(ctx, out, s, again, o, flags)
	}
	if err == nil && res.passed == 0 {
		err = errors.New("no test ran")
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, res.output)
	}
	if o.stress == 0 {
		return nil
	}
	for _, part := range []string{"Lifecycle", "Exec"} {
		if err := stress(ctx, out, s, part, o, flags); err != nil {
			return fmt.Errorf("stress of %s: %w", strings.ToLower(part), err)
		}
	}
	return nil
}

// repeat runs failed tests that are a matter of time once more, each by itself.
func repeat(ctx context.Context, out io.Writer, s *site, names []string, o options, flags []string) error {
	var errs []error
	for _, name := range names {
		var res results
		var err error
		for i := 2; i <= attempts; i++ {
			res, err = s.test(ctx, o.verbose, append(flags, "-test.run", pattern(name), "-test.timeout", "5m"))
			if err == nil && res.passed == 0 {
				err = errors.New("no test ran")
			}
			fmt.Fprintf(out, "  %s, a matter of time (%s): run %d of %d: failed %v\n", name, timed[path.Base(name)], i, attempts, err != nil)
			if err == nil {
				break
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w\n%s", name, err, res.output))
		}
	}
	return errors.Join(errs...)
}

// stressEnd is how long before -test.timeout the suite ends its stress.
const stressEnd = time.Minute

func stress(ctx context.Context, out io.Writer, s *site, part string, o options, flags []string) error {
	watch, err := s.watch(ctx)
	if err != nil {
		return err
	}
	res, err := s.test(ctx, o.verbose, append(flags, "-test.run", "^TestStress$/^"+part+"$", "-test.timeout", (o.stress/2+stressEnd).String(),
		"-rss-growth", fmt.Sprint(rssSlack), "-exec-timeout", o.exec.String()))
	samples := watch()
	for _, line := range res.matching(`(lifecycle: \d+|exec: \d+|guest mem: before).*`) {
		fmt.Fprintf(out, "  %s\n", line)
	}
	fmt.Fprintf(out, "  %s\n", describe(samples))
	if err == nil && res.passed == 0 {
		err = errors.New("no test ran")
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, res.output)
	}
	return grown(samples)
}
