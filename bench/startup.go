package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/applevm/applevm/e2e/stack"
)

// startupPhases are the parts of a start that the conformance suite's StartupPhases
// benchmark reports, in their order.
var startupPhases = []string{"shim-start", "connect", "create", "task-start", "output", "total"}

const (
	// startupRounds is how often the suite is run for each shim, in turns, and startupEach
	// how many containers one run starts.
	startupRounds = 3
	startupEach   = 3
	// startupTimeout bounds one run.
	startupTimeout = 5 * time.Minute
)

var startup = group{rows: startupRows(), run: runStartup}

func startupRows() []string {
	var rows []string
	for _, p := range startupPhases {
		rows = append(rows, startupRow(p))
	}
	return rows
}

func startupRow(phase string) string { return "startup/" + phase }

// runStartup runs the StartupPhases benchmark of containerd's conformance suite for
// shims with our shim and runc's.
func runStartup(ctx context.Context, e *env) (retErr error) {
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		for _, row := range startupRows() {
			e.report.leftOut(row, "runc's shim needs root on Linux")
		}
		return nil
	}
	root, err := stack.Checkout()
	if err != nil {
		return err
	}
	// Short: the suite puts sockets under TMPDIR only if that has at most 26 bytes.
	dir, err := os.MkdirTemp("/tmp", "sb")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(dir)) }()
	guest := filepath.Join(root, "build", "guest", runtime.GOARCH)
	if err := os.WriteFile(filepath.Join(dir, "applevm.toml"), fmt.Appendf(nil, "[guest]\ndir = %q\n", guest), 0o644); err != nil {
		return err
	}
	// runc is given a directory: it has nobody who mounts images.
	ours := []string{"-shim", filepath.Join(root, "bin", "containerd-shim-applevm-v1"), "-format-mounts"}
	runc := []string{"-shim", filepath.Join(root, "bin", "containerd-shim-runc-v2")}
	var our, their []map[string]float64
	for range min(e.runs, startupRounds) {
		for _, s := range []struct {
			flags []string
			into  *[]map[string]float64
		}{{ours, &our}, {runc, &their}} {
			m, err := startupRun(ctx, root, dir, s.flags)
			if err != nil {
				return err
			}
			*s.into = append(*s.into, m)
		}
	}
	for _, p := range startupPhases {
		theirs := median(column(their, p))
		if theirs == 0 { // the suite counts whole milliseconds
			e.report.add(startupRow(p), median(column(our, p)), "ms")
			continue
		}
		e.report.beside(startupRow(p), median(column(our, p)), "ms", "runc's shim", theirs)
	}
	return nil
}

func column(rows []map[string]float64, name string) []float64 {
	var v []float64
	for _, r := range rows {
		v = append(v, r[name])
	}
	return v
}

// startupRun returns the mean milliseconds of each phase in one run.
func startupRun(ctx context.Context, root, dir string, flags []string) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, startupTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(root, "bin", "shimtest.test"), append(flags,
		"-test.run", "^$", "-test.bench", "^BenchmarkShim$/^StartupPhases$", "-test.benchtime", fmt.Sprintf("%dx", startupEach))...)
	cmd.Dir = dir
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + dir, "XDG_CACHE_HOME=" + dir, "TMPDIR=" + dir,
		"APPLEVM_CONFIG=" + filepath.Join(dir, "applevm.toml"), "SHIMTEST_TESTBIN=" + filepath.Join(root, "bin", "testbin"),
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%v: %w (run make conformance-tools): %s", cmd.Args, err, out)
	}
	m, err := phasesOf(string(out))
	if err != nil {
		return nil, fmt.Errorf("%v: %w", cmd.Args, err)
	}
	return m, nil
}

// phasesOf finds the phases in a benchmark's output, whose lines are a name, a count,
// and pairs of a value and its unit.
func phasesOf(output string) (map[string]float64, error) {
	m := map[string]float64{}
	for line := range strings.Lines(output) {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.HasPrefix(f[0], "BenchmarkShim/StartupPhases") {
			continue
		}
		for pair := f[2:]; len(pair) >= 2; pair = pair[2:] {
			if phase, ok := strings.CutPrefix(pair[1], "ms/"); ok {
				v, err := strconv.ParseFloat(pair[0], 64)
				if err != nil {
					return nil, fmt.Errorf("the benchmark's line %q: %w", line, err)
				}
				m[phase] = v
			}
		}
	}
	for _, p := range startupPhases {
		if _, ok := m[p]; !ok {
			return nil, fmt.Errorf("the benchmark says nothing of %s: %s", p, output)
		}
	}
	return m, nil
}
