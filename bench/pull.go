package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

const (
	pullLayers = 10
	pullRounds = 5
	// pullParallel is how many layers are unpacked at a time, as docs/linux.md
	// tells users to configure.
	pullParallel = 2
)

var pull = group{
	rows: []string{"pull/serial", "pull/parallel", "pull/serial-to-exit", "pull/parallel-to-exit"},
	run:  runPull,
}

// runPull measures the pull of an image of ten layers from a registry on this
// machine by a containerd that has nothing of it, and from there to the end of the
// first container; with layers unpacked one by one and in parallel.
func runPull(ctx context.Context, e *env) (retErr error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	reg, err := startRegistry()
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, reg.close()) }()
	ref, err := pushLayers(ctx, reg)
	if err != nil {
		return err
	}
	modes := []*pullMode{{name: "pull/serial", unpacks: 1}, {name: "pull/parallel", unpacks: pullParallel}}
	for _, m := range modes {
		if m.stack, err = stack.Start(ctx, stack.Options{Unprivileged: true, Unpacks: m.unpacks}); err != nil {
			return err
		}
		defer func() { _ = m.stack.Close() }()
	}
	for i := range min(e.runs, pullRounds) + 1 {
		for _, m := range modes {
			// The first is a warm-up: page cache, accelerator probe.
			if err := m.once(ctx, ref, i > 0); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
	}
	serial, parallel := modes[0], modes[1]
	base, baseToExit := median(serial.pulled), median(serial.toExit)
	e.report.add(serial.name, base, "s")
	e.report.ratioAtMost(parallel.name, median(parallel.pulled), "s", serial.name, base, 1)
	e.report.add(serial.name+"-to-exit", baseToExit, "s")
	e.report.beside(parallel.name+"-to-exit", median(parallel.toExit), "s", serial.name+"-to-exit", baseToExit)
	return nil
}

// pushLayers gives the registry Debian's image in ten layers and returns its reference.
func pushLayers(ctx context.Context, reg *localRegistry) (string, error) {
	tar, err := images.DebianLayer(ctx)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "pull")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	layers, err := images.Split(tar, pullLayers, dir)
	if err != nil {
		return "", err
	}
	archive := filepath.Join(dir, "image.tar")
	err = images.Write(archive, images.Image{Ref: "bench/layers:latest", Arch: runtime.GOARCH, Cmd: []string{"true"}, Layers: layers})
	if err != nil {
		return "", err
	}
	return reg.push(ctx, archive, "bench/layers")
}

// pullMode is a containerd with one way to unpack, and what it took, in seconds.
type pullMode struct {
	name           string
	unpacks        int
	stack          *stack.Stack
	pulled, toExit []float64
}

// once pulls and runs the image, and then makes containerd forget it.
func (m *pullMode) once(ctx context.Context, ref string, counts bool) error {
	const id = "pulled"
	s := m.stack
	start := time.Now()
	if out, err := s.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", "applevm", ref).CombinedOutput(); err != nil {
		return fmt.Errorf("pull: %w: %s", err, bytes.TrimSpace(out))
	}
	pulled := time.Since(start)
	if out, err := s.CtrRun(ctx, "--rm", ref, id, "true").CombinedOutput(); err != nil {
		return fmt.Errorf("run: %w: %s", err, bytes.TrimSpace(out))
	}
	toExit := time.Since(start)
	if counts {
		m.pulled, m.toExit = append(m.pulled, pulled.Seconds()), append(m.toExit, toExit.Seconds())
	}
	return m.forget(ctx, ref)
}

// forget removes the image and waits until its content and its snapshots' layers are gone:
// a layer that is still there would not be unpacked again.
func (m *pullMode) forget(ctx context.Context, ref string) error {
	s := m.stack
	if out, err := s.Ctr(ctx, "image", "rm", "--sync", ref).CombinedOutput(); err != nil {
		return fmt.Errorf("remove the image: %w: %s", err, bytes.TrimSpace(out))
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		blobs, err := s.Ctr(ctx, "content", "ls", "-q").Output()
		if err != nil {
			return fmt.Errorf("list content: %w", err)
		}
		layers, err := filepath.Glob(filepath.Join(s.Dir, "snapshots", "layers", "*"))
		if err != nil {
			return err
		}
		if len(blobs) == 0 && len(layers) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the removed image left blobs %q and layers %q", bytes.Fields(blobs), layers)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
