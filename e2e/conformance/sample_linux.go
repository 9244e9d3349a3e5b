package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// process is one of a run, other than the suite itself.
type process struct {
	pid  int
	name string // of its program
}

// processes finds the shims and machines of the run: all that have its directory in
// their arguments, which the suite makes sure of by its TMPDIR.
func (s *site) processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || !bytes.Contains(cmdline, []byte(s.dir+"/")) {
			continue // it has ended, or is not ours
		}
		args := strings.Split(string(cmdline), "\x00")
		name := filepath.Base(args[0])
		if name == "shimtest.test" || name == "setpriv" {
			continue
		}
		list = append(list, process{pid, name})
	}
	return list, nil
}

// sampleEvery is the time between two samples of a run.
const sampleEvery = 500 * time.Millisecond

// watch takes samples until its result is called, which returns them.
func (s *site) watch(ctx context.Context) (func() []sample, error) {
	if _, err := s.processes(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var samples []sample
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(sampleEvery):
				samples = append(samples, s.sample())
			}
		}
	})
	return func() []sample {
		cancel()
		wg.Wait()
		return samples
	}, nil
}

// sample leaves out what ends while it looks.
func (s *site) sample() sample {
	var m sample
	list, _ := s.processes()
	for _, p := range list {
		proc := filepath.Join("/proc", strconv.Itoa(p.pid))
		rss, threads := status(proc)
		if !strings.HasPrefix(p.name, "containerd-shim-") {
			m.others++
			m.otherRSS = max(m.otherRSS, rss)
			continue
		}
		m.shims++
		m.shimRSS += rss
		m.threads += threads
		fds, _ := filepath.Glob(filepath.Join(proc, "fd", "*"))
		for _, fd := range fds {
			target, err := os.Readlink(fd)
			if err != nil {
				continue
			}
			m.fds++
			if strings.HasPrefix(target, "socket:") {
				m.sockets++
			}
		}
	}
	m.mounts = count("/proc/self/mountinfo", s.dir+"/")
	m.unixSockets = count("/proc/net/unix", s.dir+"/")
	return m
}

// status returns a process's resident memory in bytes and its threads.
func status(proc string) (rss int64, threads int) {
	b, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) < 2:
		case f[0] == "VmRSS:":
			n, _ := strconv.ParseInt(f[1], 10, 64)
			rss = n << 10
		case f[0] == "Threads:":
			threads, _ = strconv.Atoi(f[1])
		}
	}
	return rss, threads
}

// count returns how many lines of a file contain part.
func count(file, part string) int {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}
