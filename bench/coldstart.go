package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/guest/image"
	"github.com/applevm/applevm/shim/machine"
	"github.com/applevm/applevm/shim/trace"
	"github.com/applevm/applevm/vmm"
)

// phases are the parts of a cold start, from the shim's marks.
var phases = []struct{ name, from, to string }{
	{"cold-start/shim-start", trace.ShimExec, trace.CreateBegin},
	{"cold-start/vmm-start", trace.VMMStart, trace.VMMStarted},
	{"cold-start/kernel-to-agent", trace.VMMStarted, trace.AgentConnected},
	{"cold-start/guest-create", trace.GuestCreate, trace.GuestCreated},
	{"cold-start/start", trace.StartBegin, trace.StartEnd},
	{"cold-start/exit", trace.StartEnd, trace.Exit},
	{"cold-start/delete", trace.DeleteBegin, trace.DeleteEnd},
}

const floorName = "cold-start/floor"

var coldStart = group{
	rows: []string{"cold-start/total", floorName, "cold-start/shim-start", "cold-start/vmm-start", "cold-start/kernel-to-agent",
		"cold-start/guest-create", "cold-start/start", "cold-start/exit", "cold-start/delete", "cold-start/around-the-shim", "shim/peak-rss"},
	run: runColdStart,
}

func runColdStart(ctx context.Context, e *env) error {
	archive, err := images.Debian(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// The stack's user writes to it.
	marks := filepath.Join(dir, "trace")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(marks, nil, 0o666), os.Chmod(marks, 0o666)); err != nil {
		return err
	}
	s, err := stack.Start(ctx, stack.Options{Unprivileged: true, Env: []string{trace.Env + "=" + marks}})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if err := s.Import(ctx, archive); err != nil {
		return err
	}
	var totals, floors []float64
	for i := range e.runs + 1 {
		floor, err := bootFloor(ctx)
		if err != nil {
			return fmt.Errorf("the bare machine: %w", err)
		}
		total, err := timeRun(ctx, s, fmt.Sprint("c", i))
		if err != nil {
			return err
		}
		if i == 0 { // warm-up: page cache, accelerator probe
			continue
		}
		floors, totals = append(floors, floor), append(totals, total)
	}
	records, err := readTrace(marks)
	if err != nil {
		return err
	}
	floor := median(floors)
	e.report.add(floorName, floor, "ms")
	e.report.ratioAtMost("cold-start/total", median(totals), "ms", floorName, floor, 1.25)
	for _, p := range phases {
		var v []float64
		for _, r := range records[1:] {
			v = append(v, float64(r.Marks[p.to]-r.Marks[p.from])/1e6)
		}
		e.report.beside(p.name, median(v), "ms", floorName, floor)
	}
	var around []float64
	for i, r := range records[1:] {
		around = append(around, totals[min(i, len(totals)-1)]-float64(r.Marks[trace.DeleteEnd]-r.Marks[trace.ShimExec])/1e6)
	}
	e.report.beside("cold-start/around-the-shim", median(around), "ms", floorName, floor)
	rss, err := shimPeakRSS(ctx, s)
	if err != nil {
		return err
	}
	e.report.atMost("shim/peak-rss", rss, "MiB", 40)
	return nil
}

// timeRun returns how many milliseconds `ctr run --rm IMG true` takes.
func timeRun(ctx context.Context, s *stack.Stack, id string) (float64, error) {
	cmd := s.CtrRun(ctx, "--rm", images.DebianRef, id, "true")
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("ctr run: %w: %s", err, bytes.TrimSpace(out))
	}
	return float64(time.Since(start)) / 1e6, nil
}

// bootFloor returns how many milliseconds the bare machine takes, with the same
// kernel, initramfs and memory, until the agent's first line.
func bootFloor(ctx context.Context) (_ float64, retErr error) {
	img, err := image.Open(filepath.Join("build", "guest", runtime.GOARCH))
	if err != nil {
		return 0, err
	}
	cfg := config.Default()
	// What an ordinary user without access to /dev/kvm gets, as the stack's does.
	cfg.QEMU.Accel = "tcg"
	driver, err := machine.NewDriver(cfg)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "floor")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	m, err := driver.New(vmm.Config{
		Name: "floor", Dir: dir, CPUs: 1, Memory: cfg.Machine.MemoryMiB << 20,
		Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: img.Cmdline,
	})
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := m.Start(ctx); err != nil {
		return 0, err
	}
	defer func() { retErr = errors.Join(retErr, m.Kill()) }()
	for !bytes.Contains(m.Console(), []byte(api.ReadyLine)) {
		select {
		case <-m.Done():
			return 0, fmt.Errorf("it ended before the agent's first line: %w", m.Err())
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Millisecond):
		}
		if time.Since(start) > time.Minute {
			return 0, fmt.Errorf("no line of the agent in a minute: %s", m.Console())
		}
	}
	return float64(time.Since(start)) / 1e6, nil
}

func readTrace(path string) ([]trace.Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var records []trace.Record
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var r trace.Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		records = append(records, r)
	}
	if len(records) < 2 {
		return nil, fmt.Errorf("%s has %d records", path, len(records))
	}
	return records, nil
}

// shimPeakRSS returns the largest resident memory, in MiB, of the shim of a
// container that has passed 64 MiB of output.
func shimPeakRSS(ctx context.Context, s *stack.Stack) (float64, error) {
	const id = "rss"
	run := s.CtrRun(ctx, images.DebianRef, id, "sh", "-c", "head -c 67108864 /dev/zero; sleep 1000")
	out, err := run.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := run.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = s.Ctr(ctx, "task", "delete", "--force", id).Run()
		_ = run.Process.Kill()
		_ = run.Wait()
		_ = s.Ctr(ctx, "container", "delete", id).Run()
	}()
	buf := make([]byte, 1<<20)
	for got := 0; got < 64<<20; {
		n, err := out.Read(buf)
		if err != nil {
			return 0, fmt.Errorf("the container's output ended after %d bytes: %w", got, err)
		}
		got += n
	}
	shims := s.Shims()
	if len(shims) != 1 {
		return 0, fmt.Errorf("found shims %v, want one", shims)
	}
	return peakRSS(shims[0].PID)
}
