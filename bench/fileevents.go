package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

const (
	// eventDirs directories with eventFiles files each are watched.
	eventDirs  = 1000
	eventFiles = 100
	// eventIdle is how long it is measured what the watching costs.
	eventIdle = 20 * time.Second
	// eventTimeout bounds the wait for an event, eventsReady that until the first.
	eventTimeout = time.Minute
	eventsReady  = 5 * time.Minute
)

var fileEventsRows = []string{"file-events/latency", "file-events/idle-100k", "file-events/shim-rss-100k"}

var fileEventsGroup = group{rows: fileEventsRows, run: runFileEvents}

// runFileEvents measures how long it takes until inotifywait in a container tells of a file
// that the host has written, beside inotify on the host, and what it costs that a
// tree of 100,000 files is watched, beside the same container where nobody hears of the host.
func runFileEvents(ctx context.Context, e *env) (retErr error) {
	if runtime.GOOS != "linux" { // usageOf reads /proc
		for _, row := range fileEventsRows {
			e.report.leftOut(row, "there is no /proc")
		}
		return nil
	}
	archive, err := images.Watchers(ctx)
	if err != nil {
		return err
	}
	s, err := stack.Start(ctx, stack.Options{Unprivileged: true})
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, s.Close()) }()
	if err := s.Import(ctx, archive); err != nil {
		return err
	}
	tree := filepath.Join(s.Dir, "tmp", "tree")
	if err := makeTree(tree); err != nil {
		return err
	}
	on, err := watchTree(ctx, s, "on", tree, e.runs)
	if err != nil {
		return err
	}
	off, err := watchTree(ctx, s, "off", tree, 0, "--annotation", "dev.applevm.file-events=false")
	if err != nil {
		return err
	}
	native, err := nativeEvents(ctx, filepath.Join(tree, "d0"), e.runs)
	if err != nil {
		return err
	}
	e.report.beside("file-events/latency", 1e3*median(on.latency), "ms", "inotify on the host", 1e3*median(native))
	e.report.beside("file-events/idle-100k", 1e3*on.cpu, "ms/s of CPU", "without events", 1e3*off.cpu)
	e.report.beside("file-events/shim-rss-100k", on.rss, "MiB", "without events", off.rss)
	return nil
}

func makeTree(tree string) error {
	for d := range eventDirs {
		dir := filepath.Join(tree, fmt.Sprint("d", d))
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		for f := range eventFiles {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", f)), nil, 0o666); err != nil {
				return err
			}
		}
	}
	if os.Getuid() != 0 {
		return nil
	}
	// With macOS's driver a guest changes a file's mode to tell of it: it is its user's.
	return filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, stack.Nobody, stack.Nobody)
	})
}

// watchedTree is what was measured of a container that watches a tree.
type watchedTree struct {
	latency []float64 // seconds
	cpu     float64   // seconds for a second, of VMM and shim
	rss     float64   // of the shim, MiB
}

// watchTree runs a container whose inotifywait watches a tree, for runs events, if any.
func watchTree(ctx context.Context, s *stack.Stack, id, tree string, runs int, flags ...string) (out watchedTree, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	args := append([]string{"--rm", "--mount", "type=bind,src=" + tree + ",dst=/tree,options=rbind"}, flags...)
	cmd := s.CtrRun(ctx, append(args, images.WatchersRef, id, "sh", "-c", "inotifywait -m -r -e modify -e attrib --format '%w%f' /tree 2>&1")...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return out, err
	}
	if err := cmd.Start(); err != nil {
		return out, err
	}
	defer func() {
		_ = s.Ctr(context.WithoutCancel(ctx), "task", "kill", "-s", "KILL", id).Run()
		_ = cmd.Wait()
	}()
	lines := readLines(pipe)
	if err := expectLine(ctx, lines, "Watches established.", eventsReady); err != nil {
		return out, err
	}
	path := filepath.Join(tree, "d0", "f0")
	if runs > 0 {
		// Until the host has begun to watch, too.
		for end := time.Now().Add(eventsReady); ; {
			if err := os.WriteFile(path, []byte("x"), 0o666); err != nil {
				return out, err
			}
			if expectLine(ctx, lines, "/tree/d0/f0", time.Second) == nil {
				break
			}
			if time.Now().After(end) {
				return out, fmt.Errorf("no event of %s", path)
			}
		}
	}
	for i := range runs {
		drain(lines)
		start := time.Now()
		if err := appendTo(path, strconv.Itoa(i)); err != nil {
			return out, err
		}
		if err := expectLine(ctx, lines, "/tree/d0/f0", eventTimeout); err != nil {
			return out, err
		}
		out.latency = append(out.latency, time.Since(start).Seconds())
	}
	drain(lines)
	before, err := usageOf(s)
	if err != nil {
		return out, err
	}
	select {
	case <-ctx.Done():
		return out, ctx.Err()
	case <-time.After(eventIdle):
	}
	after, err := usageOf(s)
	if err != nil {
		return out, err
	}
	out.cpu = (after.cpu - before.cpu) / eventIdle.Seconds()
	out.rss = after.rss
	return out, nil
}

// nativeEvents is the latency of inotify on the host.
func nativeEvents(ctx context.Context, dir string, runs int) (out []float64, err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.Add(dir); err != nil {
		return nil, err
	}
	for i := range runs {
		start := time.Now()
		if err := appendTo(filepath.Join(dir, "f0"), strconv.Itoa(i)); err != nil {
			return nil, err
		}
		select {
		case <-w.Events:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(eventTimeout):
			return nil, fmt.Errorf("no event of %s on the host", dir)
		}
		out = append(out, time.Since(start).Seconds())
	}
	return out, nil
}

// treeUsage is what the processes of a stack's one container have used.
type treeUsage struct {
	cpu float64 // seconds, of shim and VMM
	rss float64 // MiB, of the shim
}

func usageOf(s *stack.Stack) (u treeUsage, err error) {
	for _, p := range append(s.Shims(), s.VMMs()...) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
		if err != nil {
			return u, err
		}
		// proc(5): utime and stime are the 14th and 15th field, in ticks of 10 ms; the second
		// may have blanks in its parentheses.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		for _, ticks := range f[11:13] {
			n, err := strconv.ParseFloat(ticks, 64)
			if err != nil {
				return u, err
			}
			u.cpu += n / 100
		}
	}
	for _, p := range s.Shims() {
		m, err := memory(p.PID)
		if err != nil {
			return u, err
		}
		u.rss += m.rss
	}
	return u, nil
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func readLines(r io.Reader) <-chan string {
	lines := make(chan string, 1024)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			lines <- strings.TrimSpace(s.Text())
		}
	}()
	return lines
}

// drain drops lines until there are none for a while.
func drain(lines <-chan string) {
	for {
		select {
		case _, ok := <-lines:
			if !ok {
				return
			}
		case <-time.After(200 * time.Millisecond):
			return
		}
	}
}

func expectLine(ctx context.Context, lines <-chan string, want string, timeout time.Duration) error {
	deadline := time.After(timeout)
	for {
		select {
		case l, ok := <-lines:
			if l == want {
				return nil
			}
			if !ok {
				return fmt.Errorf("no line %q: the container has ended", want)
			}
		case <-deadline:
			return fmt.Errorf("no line %q within %v", want, timeout)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
