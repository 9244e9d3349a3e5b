package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/shim/machine"
	"github.com/applevm/applevm/vmm/vmmtest"
)

const (
	vsockBytes  = 64 << 20
	vsockRounds = 1000
	packet      = 64
)

var vsockGroup = group{
	rows: []string{"vsock/round-trip", "vsock/to-guest", "vsock/from-guest"},
	run:  runVsock,
}

// runVsock measures vsock with the conformance suite's guest, beside a unix
// socket between two processes' worth of goroutines on the host: what the same
// bytes cost without a machine in between.
func runVsock(ctx context.Context, e *env) (retErr error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "vsock")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	img, err := vmmtest.BuildImage(ctx, runtime.GOARCH, dir)
	if err != nil {
		return err
	}
	driver, err := machine.NewDriver(config.Default())
	if err != nil {
		return err
	}
	run := filepath.Join(dir, "m")
	if err := os.Mkdir(run, 0o700); err != nil {
		return err
	}
	g, err := vmmtest.StartGuest(ctx, driver, vmmtest.ConfigFor(img, run))
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, g.Kill()) }()

	var to, from, unixRate []float64
	for range e.runs {
		d, err := g.Send(ctx, vsockBytes)
		if err != nil {
			return err
		}
		to = append(to, rate(vsockBytes, d))
		if d, err = g.Receive(ctx, vsockBytes); err != nil {
			return err
		}
		from = append(from, rate(vsockBytes, d))
		if d, err = unixTransfer(vsockBytes); err != nil {
			return err
		}
		unixRate = append(unixRate, rate(vsockBytes, d))
	}
	trips, err := g.RoundTrips(ctx, vsockRounds, packet)
	if err != nil {
		return err
	}
	unixTrips, err := unixRoundTrips(vsockRounds, packet)
	if err != nil {
		return err
	}
	e.report.beside("vsock/round-trip", median(micros(trips)), "µs", "unix socket", median(micros(unixTrips)))
	e.report.beside("vsock/to-guest", median(to), "MB/s", "unix socket", median(unixRate))
	e.report.beside("vsock/from-guest", median(from), "MB/s", "unix socket", median(unixRate))
	return nil
}

// rate is in megabytes (10^6 bytes) a second.
func rate(bytes int64, d time.Duration) float64 { return float64(bytes) / 1e6 / d.Seconds() }

func micros(ds []time.Duration) []float64 {
	v := make([]float64, len(ds))
	for i, d := range ds {
		v[i] = float64(d) / 1e3
	}
	return v
}

// unixPair returns both ends of a connected unix socket.
func unixPair() (a, b net.Conn, err error) {
	dir, err := os.MkdirTemp("", "pair")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if a, err = net.Dial("unix", filepath.Join(dir, "s")); err != nil {
		return nil, nil, err
	}
	if b, err = l.Accept(); err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	return a, b, nil
}

func unixTransfer(bytes int64) (time.Duration, error) {
	a, b, err := unixPair()
	if err != nil {
		return 0, err
	}
	defer a.Close()
	defer b.Close()
	begin := time.Now()
	go func() {
		buf := make([]byte, 256<<10)
		for sent := int64(0); sent < bytes; sent += int64(len(buf)) {
			if _, err := a.Write(buf); err != nil {
				return // the reader sees it too
			}
		}
		_ = a.Close()
	}()
	// Not io.Discard: its ReadFrom would be fed by splice.
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{b}, make([]byte, 256<<10))
	if err != nil || n != bytes {
		return 0, fmt.Errorf("unix socket: %d of %d bytes: %w", n, bytes, err)
	}
	return time.Since(begin), nil
}

func unixRoundTrips(n, size int) ([]time.Duration, error) {
	a, b, err := unixPair()
	if err != nil {
		return nil, err
	}
	defer a.Close()
	defer b.Close()
	go func() { _, _ = io.Copy(struct{ io.Writer }{b}, struct{ io.Reader }{b}) }()
	buf := make([]byte, size)
	took := make([]time.Duration, n)
	for i := range took {
		begin := time.Now()
		if _, err := a.Write(buf); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(a, buf); err != nil {
			return nil, err
		}
		took[i] = time.Since(begin)
	}
	return took, nil
}
