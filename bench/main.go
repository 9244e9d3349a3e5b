// Command bench prints applevm's numbers as one table, each beside a peer or a
// limit that was measured in the same run, and writes bench/out/results.json.
//
// Machines are shared and noisy: values are medians, and what counts is the ratio.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"

	"github.com/applevm/applevm/e2e/stack"
)

// A group measures rows that belong together. It runs if a row of it is asked for.
type group struct {
	// rows names the rows, for the choice by BENCH.
	rows []string
	run  func(context.Context, *env) error
}

// env is what groups share.
type env struct {
	runs   int
	report *report
}

func main() {
	pattern := flag.String("run", ".", "measure only rows whose name matches this `regexp`")
	runs := flag.Int("n", 10, "how often each thing is measured; the median counts")
	out := flag.String("out", "bench/out/results.json", "write the rows to this `file`")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var err error
	switch flag.Arg(0) {
	case "":
		err = bench(ctx, *pattern, *runs, *out)
	case measuredArg:
		err = measuredMain(flag.Args()[1:])
	case unpackArg:
		err = unpackMain(flag.Args()[1:])
	default:
		err = fmt.Errorf("unknown argument %q", flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		cancel()
		os.Exit(1)
	}
}

func bench(ctx context.Context, pattern string, runs int, out string) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return fmt.Errorf("BENCH: %w", err)
	}
	root, err := stack.Checkout()
	if err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	e := &env{runs: runs, report: &report{keep: re.MatchString}}
	groups := slices.Concat([]group{coldStart, startup, vsockGroup, networkGroup, sharingGroup, fileEventsGroup, stdio, faults}, unpackGroups(), []group{writableImage, snapshotsGroup, pull})
	for _, g := range groups {
		wanted := false
		for _, r := range g.rows {
			wanted = wanted || re.MatchString(r)
		}
		if !wanted {
			continue
		}
		if err := g.run(ctx, e); err != nil {
			return fmt.Errorf("%s: %w", g.rows[0], err)
		}
	}
	e.report.print(os.Stdout)
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(e.report.rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(b, '\n'), 0o644)
}
