package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"github.com/applevm/applevm/snapshotter/hostcheck"
)

// check prints what hostcheck finds, a line each. An error is its answer too:
// it says that the host is not ready.
func check(ctx context.Context, c *call) error {
	fs := new(flag.FlagSet)
	timeout := fs.Duration("timeout", hostcheck.DefaultTimeout, "how long each probe may take")
	cfg, err := c.parseConfig(fs)
	if err != nil {
		return err
	}
	failed := 0
	var output error
	err = hostcheck.Run(ctx, cfg, hostcheck.Options{Timeout: *timeout}, func(f hostcheck.Finding) {
		if f.Level == hostcheck.Fail {
			failed++
		}
		// What it found may be the word of another program.
		text := fmt.Sprintf("%-4s  %s", f.Level, line(f.What))
		if f.Remedy != "" {
			text += "  — " + line(f.Remedy)
		}
		if _, err := fmt.Fprintln(c.out, text); err != nil && output == nil {
			output = err
		}
	})
	if err := errors.Join(err, output); err != nil {
		return err
	}
	switch failed {
	case 0:
		return nil
	case 1:
		return errors.New("this host is not ready: 1 finding is FAIL")
	}
	return fmt.Errorf("this host is not ready: %d findings are FAIL", failed)
}
