package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

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
}

var networkGroup = group{rows: networkRows, run: runNetwork}

// netResult is what one container's network gives.
type netResult struct{ to, from, trip float64 } // MB/s, MB/s, µs

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
	for _, way := range []struct {
		name, addr string
		args       []string
	}{
		{"runc", "10.4.0.50", []string{"--snapshotter", "overlayfs", "--runtime", "io.containerd.runc.v2", "--ip", "10.4.0.50"}},
		{"cni", "10.4.0.60", append([]string{"--ip", "10.4.0.60"}, ours...)},
		{"user", "127.0.0.1", append([]string{"--net", "none", "--annotation", "dev.applevm.network=user", "-p", "127.0.0.1:9000:9000"}, ours...)},
	} {
		if results[way.name], err = measureNetwork(ctx, s, ns, way.name, way.addr, e.runs, append(way.args, "-v", peer+":/peer:ro")); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	r := results["runc"]
	for _, name := range []string{"user", "cni"} {
		m := results[name]
		e.report.beside("network/"+name+"/to-guest", m.to, "MB/s", "runc's bridge", r.to)
		e.report.beside("network/"+name+"/from-guest", m.from, "MB/s", "runc's bridge", r.from)
		e.report.beside("network/"+name+"/round-trip", m.trip, "µs", "runc's bridge", r.trip)
	}
	return nil
}

func measureNetwork(ctx context.Context, s *stack.Stack, ns netns.NsHandle, name, addr string, runs int, args []string) (m netResult, retErr error) {
	run := s.Nerdctl(ctx, append(append([]string{"run", "-d", "--name", name}, args...), images.DebianRef, "/peer/netpeer")...)
	if args[0] == "--snapshotter" { // a flag of nerdctl itself
		run = s.Nerdctl(ctx, append(append(append(append([]string{}, args[:2]...), "run", "-d", "--name", name), args[2:]...), images.DebianRef, "/peer/netpeer")...)
	}
	if out, err := run.CombinedOutput(); err != nil {
		return m, fmt.Errorf("nerdctl run: %w: %s", err, strings.TrimSpace(string(out)))
	}
	defer func() {
		if out, err := s.Nerdctl(context.Background(), "rm", "-f", name).CombinedOutput(); err != nil {
			retErr = errors.Join(retErr, fmt.Errorf("nerdctl rm: %w: %s", err, out))
		}
	}()
	at := net.JoinHostPort(addr, "9000")
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err := netTransfer(ns, at, 'r', 1); err == nil {
			break
		} else if time.Now().After(end) {
			return m, err
		}
	}
	var to, from []float64
	for range runs {
		for dir, list := range map[byte]*[]float64{'s': &to, 'r': &from} {
			d, err := netTransfer(ns, at, dir, netBytes)
			if err != nil {
				return m, err
			}
			*list = append(*list, rate(netBytes, d))
		}
	}
	trips, err := netRoundTrips(ns, at)
	return netResult{median(to), median(from), median(micros(trips))}, err
}

// netDial connects in the namespace and says what is wanted.
func netDial(ns netns.NsHandle, addr string, op byte, n int64) (net.Conn, error) {
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
	if r.err != nil {
		return nil, r.err
	}
	_ = r.c.SetDeadline(time.Now().Add(2 * time.Minute))
	_, err := r.c.Write(binary.BigEndian.AppendUint64([]byte{op}, uint64(n)))
	return r.c, err
}

// netTransfer times n bytes to ('s') or from ('r') the container.
func netTransfer(ns netns.NsHandle, addr string, op byte, n int64) (time.Duration, error) {
	c, err := netDial(ns, addr, op, n)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	begin := time.Now()
	buf := make([]byte, 256<<10)
	if op == 's' {
		for left := n; left > 0; {
			k, err := c.Write(buf[:min(left, int64(len(buf)))])
			if err != nil {
				return 0, err
			}
			left -= int64(k)
		}
		_, err = io.ReadFull(c, buf[:1])
	} else {
		_, err = io.ReadFull(struct{ io.Reader }{io.LimitReader(c, n)}, make([]byte, n))
	}
	return time.Since(begin), err
}

func netRoundTrips(ns netns.NsHandle, addr string) ([]time.Duration, error) {
	c, err := netDial(ns, addr, 'e', 0)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var out []time.Duration
	buf := make([]byte, packet)
	for range netRounds {
		begin := time.Now()
		if _, err := c.Write(buf); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return nil, err
		}
		out = append(out, time.Since(begin))
	}
	return out, nil
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
