package main

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
	"strings"
	"time"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

const (
	// stdioBytes go through an exec's pipe in one measurement.
	stdioBytes = 256 << 20
	// stdioRounds are enough for 1 GiB each way.
	stdioRounds = 4
	// stdioTimeout bounds one measurement.
	stdioTimeout = 2 * time.Minute
	// idleSettle is how long a container is left alone before its memory is read.
	idleSettle = 5 * time.Second
)

var stdioRows = []string{"stdio/out", "stdio/in", "stdio/shim-growth", "idle/shim-rss", "idle/shim-pss", "idle/vmm-pss", "idle/pss"}

var stdio = group{rows: stdioRows, run: runStdio}

// peer is a runtime with a running container that does nothing.
type peer struct {
	shim    string // the name of its shim's program
	run     func(ctx context.Context, args ...string) *exec.Cmd
	id      string
	pid     int // of its shim
	in, out []float64
}

// runStdio measures what passes an exec's pipes, and the memory of a container that does
// nothing, beside runc's shim.
func runStdio(ctx context.Context, e *env) error {
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		for _, row := range stdioRows {
			e.report.leftOut(row, "runc's shim needs root on Linux")
		}
		return nil
	}
	archive, err := images.Debian(ctx)
	if err != nil {
		return err
	}
	s, err := stack.Start(ctx, stack.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if err := s.Import(ctx, archive); err != nil {
		return err
	}
	ours := &peer{id: "ours", shim: "containerd-shim-applevm-v1", run: s.CtrRun}
	runc := &peer{id: "runc", shim: "containerd-shim-runc-v2", run: func(ctx context.Context, args ...string) *exec.Cmd {
		return s.Ctr(ctx, append([]string{"run", "--runtime", "io.containerd.runc.v2", "--snapshotter", "overlayfs",
			"--fifo-dir", filepath.Join(s.Dir, "fifo")}, args...)...)
	}}
	peers := []*peer{ours, runc}
	for _, p := range peers {
		if out, err := p.run(ctx, "-d", images.DebianRef, p.id, "sleep", "100000").CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", p.shim, err, bytes.TrimSpace(out))
		}
		defer func() {
			_ = s.Ctr(ctx, "task", "delete", "--force", p.id).Run()
			_ = s.Ctr(ctx, "container", "delete", p.id).Run()
		}()
		for _, sh := range s.Shims() {
			if sh.Name == p.shim {
				p.pid = sh.PID
			}
		}
		if p.pid == 0 {
			return fmt.Errorf("no process %s", p.shim)
		}
	}
	if err := idle(ctx, e, s, ours, runc); err != nil {
		return err
	}
	before, err := memory(ours.pid)
	if err != nil {
		return err
	}
	for i := range stdioRounds {
		for _, p := range peers {
			out, err := execOut(ctx, s, p.id, fmt.Sprint("o", i), stdioBytes)
			if err != nil {
				return fmt.Errorf("%s: %w", p.shim, err)
			}
			in, err := execIn(ctx, s, p.id, fmt.Sprint("i", i), stdioBytes)
			if err != nil {
				return fmt.Errorf("%s: %w", p.shim, err)
			}
			p.out, p.in = append(p.out, rate(stdioBytes, out)), append(p.in, rate(stdioBytes, in))
		}
	}
	peak, err := peakRSS(ours.pid)
	if err != nil {
		return err
	}
	e.report.beside("stdio/out", median(ours.out), "MB/s", "runc's shim", median(runc.out))
	e.report.beside("stdio/in", median(ours.in), "MB/s", "runc's shim", median(runc.in))
	e.report.atMost("stdio/shim-growth", max(0, peak-before.rss), "MiB", 16)
	return nil
}

// idle reports the memory of the peers' shims and of our machine.
func idle(ctx context.Context, e *env, s *stack.Stack, ours, runc *peer) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idleSettle):
	}
	our, err := memory(ours.pid)
	if err != nil {
		return err
	}
	theirs, err := memory(runc.pid)
	if err != nil {
		return err
	}
	vmms := s.VMMs()
	if len(vmms) != 1 {
		return fmt.Errorf("found machines %v, want one", vmms)
	}
	vmm, err := memory(vmms[0].PID)
	if err != nil {
		return err
	}
	e.report.beside("idle/shim-rss", our.rss, "MiB", "runc's shim", theirs.rss)
	e.report.beside("idle/shim-pss", our.pss, "MiB", "runc's shim", theirs.pss)
	e.report.add("idle/vmm-pss", vmm.pss, "MiB")
	e.report.beside("idle/pss", our.pss+vmm.pss, "MiB", "runc's shim", theirs.pss)
	return nil
}

// execOut returns how long size bytes take from a process's output to the client,
// from the first byte to the last.
func execOut(ctx context.Context, s *stack.Stack, id, exec string, size int64) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, stdioTimeout)
	defer cancel()
	cmd := s.CtrExec(ctx, "--exec-id", exec, id, "head", "-c", fmt.Sprint(size), "/dev/zero")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(out, make([]byte, 1))
	start := time.Now()
	rest, readErr := discard(out)
	took := time.Since(start)
	if err := errors.Join(err, readErr, cmd.Wait()); err != nil || int64(n)+rest != size {
		return 0, fmt.Errorf("%d bytes of %d came out: %w: %s", int64(n)+rest, size, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return took, nil
}

// execIn returns how long size bytes take from the client to a process that reads them,
// from the first byte until the client knows that the process has read all and ended.
func execIn(ctx context.Context, s *stack.Stack, id, exec string, size int64) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, stdioTimeout)
	defer cancel()
	cmd := s.CtrExec(ctx, "--exec-id", exec, id, "sh", "-c", "echo ready; exec wc -c")
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ready := make([]byte, len("ready\n"))
	_, err = io.ReadFull(out, ready)
	start := time.Now()
	buf := make([]byte, 256<<10)
	for sent := int64(0); err == nil && sent < size; sent += int64(len(buf)) {
		_, err = in.Write(buf)
	}
	err = errors.Join(err, in.Close())
	counted, readErr := io.ReadAll(out)
	err = errors.Join(err, readErr, cmd.Wait())
	took := time.Since(start)
	if got := strings.TrimSpace(string(counted)); err != nil || got != fmt.Sprint(size) {
		return 0, fmt.Errorf("of %d bytes %q came in: %w", size, got, err)
	}
	return took, nil
}

// discard reads r to its end.
func discard(r io.Reader) (int64, error) {
	// Not io.Discard: its ReadFrom would choose another size of buffer.
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 256<<10))
}
