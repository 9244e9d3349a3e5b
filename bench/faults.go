package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// faultTarget is how many seconds a fault may take to reach the user.
const faultTarget = 5

var faults = group{
	rows: []string{"fault/missing-kernel", "fault/too-much-memory", "fault/missing-command", "fault/machine-killed"},
	run:  runFaults,
}

func runFaults(ctx context.Context, e *env) error {
	archive, err := images.Debian(ctx)
	if err != nil {
		return err
	}
	s, err := stack.Start(ctx, stack.Options{Unprivileged: true})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if err := s.Import(ctx, archive); err != nil {
		return err
	}
	img := images.DebianRef
	var memory, command, killed, kernel []float64
	for i := range 3 {
		id := fmt.Sprint("f", i)
		for _, f := range []struct {
			into *[]float64
			cmd  *exec.Cmd
		}{
			{&memory, s.CtrRun(ctx, "--rm", "--annotation", "dev.applevm.memory=100TiB", img, id, "true")},
			{&command, s.CtrRun(ctx, "--rm", img, id, "nosuch")},
		} {
			start := time.Now()
			if f.cmd.Run() == nil {
				return fmt.Errorf("%v succeeded", f.cmd.Args)
			}
			*f.into = append(*f.into, time.Since(start).Seconds())
		}
		d, err := kill(ctx, s, id)
		if err != nil {
			return err
		}
		killed = append(killed, d)
	}
	found, err := filepath.Glob(filepath.Join(s.Dir, "guest", "*"))
	if err != nil {
		return err
	}
	for _, f := range found {
		if filepath.Ext(f) != ".json" {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	for i := range 3 {
		start := time.Now()
		if s.CtrRun(ctx, "--rm", img, fmt.Sprint("k", i), "true").Run() == nil {
			return errors.New("a start without a kernel succeeded")
		}
		kernel = append(kernel, time.Since(start).Seconds())
	}
	e.report.atMost("fault/missing-kernel", median(kernel), "s", faultTarget)
	e.report.atMost("fault/too-much-memory", median(memory), "s", faultTarget)
	e.report.atMost("fault/missing-command", median(command), "s", faultTarget)
	e.report.atMost("fault/machine-killed", median(killed), "s", faultTarget)
	return nil
}

// kill returns how many seconds pass from the death of a container's machine to
// the end of its `ctr run`.
func kill(ctx context.Context, s *stack.Stack, id string) (float64, error) {
	run := s.CtrRun(ctx, "--rm", images.DebianRef, id, "sh", "-c", "echo up; sleep 1000")
	out, err := run.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := run.Start(); err != nil {
		return 0, err
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		return 0, errors.Join(err, run.Process.Kill(), run.Wait())
	}
	for _, p := range s.VMMs() {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			return 0, errors.Join(err, run.Process.Kill(), run.Wait())
		}
	}
	start := time.Now()
	_ = run.Wait() // fails: the process was killed
	return time.Since(start).Seconds(), nil
}
