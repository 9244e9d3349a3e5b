package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/applevm/applevm/bench/tcp"
	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

const (
	netBytes  = 32 << 20
	netRounds = 300
)

var networkRows = []string{
	"network/user/to-guest", "network/user/from-guest", "network/user/round-trip",
	"network/cni/to-guest", "network/cni/from-guest", "network/cni/round-trip",
	"network/user/between", "network/user/between-round-trip", "network/cni/between", "network/cni/between-round-trip",
}

var networkGroup = group{rows: networkRows, run: runNetwork}

// netResult is what one container's network gives, in MB/s and µs: to it, from it
// and from another container to it.
type netResult struct{ to, from, trip, between, betweenTrip float64 }

// netWay is a kind of container and network.
type netWay struct {
	name string
	// host and container are the server's addresses for either.
	host, container string
	// nerdctl are flags of nerdctl itself, run those of its containers, server those of
	// the server.
	nerdctl, run, server []string
}

// runNetwork measures TCP between the host and containers with the user network (a
// published port) and on nerdctl's bridge, beside a container of runc's on the same
// bridge. All of it is in a network namespace of its own.
func runNetwork(ctx context.Context, e *env) (retErr error) {
	if os.Getuid() != 0 {
		for _, r := range networkRows {
			e.report.leftOut(r, "bridges need root")
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	// Plugins keep their state there, whatever nerdctl's data directory is.
	if _, err := os.Stat("/var/lib/cni"); errors.Is(err, os.ErrNotExist) {
		defer func() { _ = os.RemoveAll("/var/lib/cni") }()
	}
	ns, err := newBenchNetNS()
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	s, err := stack.Start(ctx, stack.Options{NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns))})
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, s.Close()) }()
	archive, err := images.Debian(ctx)
	if err != nil {
		return err
	}
	if err := s.Import(ctx, archive); err != nil {
		return err
	}
	peer := filepath.Join(s.Dir, "peer")
	if err := os.Mkdir(peer, 0o755); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", peer, "./bench/netpeer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build netpeer: %w: %s", err, out)
	}
	ours := []string{"--runtime", "io.containerd.applevm.v1"}
	results := map[string]netResult{}
	for _, way := range []netWay{
		{"runc", "10.4.0.50", "10.4.0.50", []string{"--snapshotter", "overlayfs"}, []string{"--runtime", "io.containerd.runc.v2"}, []string{"--ip", "10.4.0.50"}},
		{"cni", "10.4.0.60", "10.4.0.60", nil, ours, []string{"--ip", "10.4.0.60"}},
		{"user", "127.0.0.1", "192.168.127.2", nil, append([]string{"--net", "none", "--annotation", "dev.applevm.network=bench"}, ours...), []string{"-p", "127.0.0.1:9000:9000"}},
	} {
		way.run = append(way.run, "-v", peer+":/peer:ro")
		if results[way.name], err = measureNetwork(ctx, s, ns, way, e.runs); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	r := results["runc"]
	for _, name := range []string{"user", "cni"} {
		m := results[name]
		e.report.beside("network/"+name+"/to-guest", m.to, "MB/s", "runc's bridge", r.to)
		e.report.beside("network/"+name+"/from-guest", m.from, "MB/s", "runc's bridge", r.from)
		e.report.beside("network/"+name+"/round-trip", m.trip, "µs", "runc's bridge", r.trip)
		e.report.beside("network/"+name+"/between", m.between, "MB/s", "runc's bridge", r.between)
		e.report.beside("network/"+name+"/between-round-trip", m.betweenTrip, "µs", "runc's bridge", r.betweenTrip)
	}
	return nil
}

func measureNetwork(ctx context.Context, s *stack.Stack, ns netns.NsHandle, w netWay, runs int) (m netResult, retErr error) {
	run := func(flags []string, peer ...string) (string, error) {
		args := slices.Concat(w.nerdctl, []string{"run"}, flags, w.run, []string{images.DebianRef, "/peer/netpeer"}, peer)
		cmd := s.Nerdctl(ctx, args...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("nerdctl run: %w: %s", err, strings.TrimSpace(stderr.String()))
		}
		return string(out), err
	}
	if _, err := run(append([]string{"-d", "--name", w.name}, w.server...)); err != nil {
		return m, err
	}
	defer func() {
		if out, err := s.Nerdctl(context.Background(), "rm", "-f", w.name).CombinedOutput(); err != nil {
			retErr = errors.Join(retErr, fmt.Errorf("nerdctl rm: %w: %s", err, out))
		}
	}()
	at := net.JoinHostPort(w.host, tcp.Port)
	transfer := func(op byte, n int64) (d time.Duration, err error) {
		c, err := netDial(ns, at)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return tcp.Transfer(c, op, n)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err := transfer('r', 1); err == nil {
			break
		} else if time.Now().After(end) {
			return m, err
		}
	}
	var to, from []float64
	for range runs {
		for dir, list := range map[byte]*[]float64{'s': &to, 'r': &from} {
			d, err := transfer(dir, netBytes)
			if err != nil {
				return m, err
			}
			*list = append(*list, rate(netBytes, d))
		}
	}
	m.to, m.from = median(to), median(from)
	c, err := netDial(ns, at)
	if err != nil {
		return m, err
	}
	defer c.Close()
	trip, err := tcp.RoundTrip(c, netRounds)
	if err != nil {
		return m, err
	}
	m.trip = micros([]time.Duration{trip})[0]
	var between, trips []float64
	for range runs {
		out, err := run([]string{"--rm", "--name", w.name + "-client"}, w.container, strconv.Itoa(netBytes), strconv.Itoa(netRounds))
		if err != nil {
			return m, err
		}
		var bytes, echo time.Duration
		if _, err := fmt.Sscan(out, &bytes, &echo); err != nil {
			return m, fmt.Errorf("netpeer printed %q: %w", out, err)
		}
		between, trips = append(between, rate(netBytes, bytes)), append(trips, micros([]time.Duration{echo})[0])
	}
	m.between, m.betweenTrip = median(between), median(trips)
	return m, nil
}

// netDial connects in the namespace.
func netDial(ns netns.NsHandle, addr string) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends in the other namespace
		if err := netns.Set(ns); err != nil {
			done <- result{nil, err}
			return
		}
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}

// newBenchNetNS makes a network namespace with its loopback up.
func newBenchNetNS() (ns netns.NsHandle, err error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends in the new namespace
		var err error
		if ns, err = netns.New(); err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		done <- err
	}()
	return ns, <-done
}
