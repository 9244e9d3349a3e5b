// Package shimtest runs containerd's shim conformance suite
// (github.com/containerd/shimtest, unmodified) against any shim. e2e/conformance
// and bench run the test binary that is built of it; by itself:
//
//	go test -c -o /tmp/shimtest.test . && SHIMTEST_TESTBIN=../../bin/testbin /tmp/shimtest.test -shim ../../bin/containerd-shim-applevm-v1 -test.v
//
// It is a module of its own: nothing that the suite depends on comes into
// applevm's.
package shimtest

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/containerd/shimtest"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var (
	shim   = flag.String("shim", "", "the shim's binary, a `path`")
	format = flag.Bool("format-mounts", false, "give the root file system as images of ext4 and erofs, and an overlay of them to mount, instead of a directory")
	skip   = flag.String("skip", "", "suites to leave out: a comma-separated `list` of exec, transfer, uds, oom, layers, net, stress")
	growth = flag.Int64("rss-growth", 0, "how many `bytes` the shim's resident memory may grow by in the stress of exec; 0 leaves that to the suite")
	exec   = flag.Duration("exec-timeout", 0, "how long an exec of the stress may take; 0 leaves that to the suite, whose 5 s are for machines that are not emulated")
	debug  = flag.Bool("debug", false, "have the shim log all it does")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *shim == "" {
		fmt.Fprintln(os.Stderr, "shimtest: which shim? Give -shim PATH")
		os.Exit(2)
	}
	if *exec > 0 {
		stressIterationTimeout = *exec
	}
	// As containerd's client does: an exec's process travels under this name.
	typeurl.Register(&specs.Process{}, "types.containerd.io", "opencontainers/runtime-spec", fmt.Sprint(specs.VersionMajor), "Process")
	os.Exit(m.Run())
}

// stressIterationTimeout is the suite's own variable, for which it has no option.
//
//go:linkname stressIterationTimeout github.com/containerd/shimtest.stressIterationTimeout
var stressIterationTimeout time.Duration

func config() shimtest.Config {
	return shimtest.Config{ShimBinary: *shim, FormatMounts: *format, Debug: *debug}
}

func skipped(suite string) bool { return slices.Contains(strings.Split(*skip, ","), suite) }

// TestShim runs the suites. A suite that is left out is a skipped test, so that
// it shows.
func TestShim(t *testing.T) {
	cfg := config()
	shimtest.NewRunSuite(cfg).Run(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"exec", shimtest.NewExecSuite(cfg).Run},
		{"transfer", shimtest.NewTransferSuite(cfg).Run},
		{"uds", shimtest.NewUDSSuite(cfg).Run},
		{"oom", shimtest.NewOOMSuite(cfg).Run},
		{"layers", shimtest.NewLayersSuite(cfg).Run},
		{"net", shimtest.NewNetworkSuite(cfg).Run},
	} {
		if skipped(s.name) {
			t.Run(s.name, func(t *testing.T) { t.Skip("left out by -skip") })
			continue
		}
		s.run(t)
	}
}

// TestStress runs the stress suite, each part of it until a minute before
// -test.timeout.
func TestStress(t *testing.T) {
	if skipped("stress") {
		t.Skip("left out by -skip")
	}
	shimtest.NewStressSuite(config(), shimtest.StressOptions{
		Transfer: !skipped("transfer"), ExecRSSGrowthOverride: *growth,
	}).Run(t)
}

// BenchmarkShim runs the benchmarks.
func BenchmarkShim(b *testing.B) {
	cfg := config()
	shimtest.NewRunSuite(cfg).Bench(b)
	if !skipped("exec") {
		shimtest.NewExecSuite(cfg).Bench(b)
	}
	if !skipped("uds") {
		shimtest.NewUDSSuite(cfg).Bench(b)
	}
	if !skipped("layers") {
		shimtest.NewLayersSuite(cfg).Bench(b)
	}
}
