package vmmtest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/applevm/applevm/guest/image"
	"github.com/applevm/applevm/guest/image/build"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

// BuildImage makes the test guest's image for arch in dir. It needs the Go
// command and what guest/image/build needs.
func BuildImage(ctx context.Context, arch, dir string) (image.Image, error) {
	bin := filepath.Join(dir, "init")
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return image.Image{}, errors.New("no source to build the test guest from")
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "./guest")
	cmd.Dir = filepath.Dir(file)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=-mod=mod")
	if out, err := cmd.CombinedOutput(); err != nil {
		return image.Image{}, fmt.Errorf("build the test guest: %w: %s", err, out)
	}
	return build.Build(ctx, build.Spec{Arch: arch, Init: bin, Out: dir})
}

// Guest is a running machine with the test guest in it.
type Guest struct {
	vmm.Machine
	// ToFirstLine is the time from Start to the guest's first line on the
	// console; ToReady until its ports listened.
	ToFirstLine, ToReady time.Duration
}

// ConfigFor returns a machine configuration that boots img, with one CPU and
// 256 MiB; dir is the machine's own.
func ConfigFor(img image.Image, dir string) vmm.Config {
	return vmm.Config{
		Name: "vmmtest", Dir: dir, Arch: img.Arch, CPUs: 1, Memory: 256 << 20,
		Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: slices.Clone(img.Cmdline),
	}
}

// StartGuest boots cfg, whose image must be the test guest's, and returns when
// all its ports listen.
func StartGuest(ctx context.Context, d vmm.Driver, cfg vmm.Config) (*Guest, error) {
	m, err := d.New(cfg)
	if err != nil {
		return nil, err
	}
	l, err := m.Listen(proto.ReadyPort)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	g := &Guest{Machine: m}
	begin := time.Now()
	if err := m.Start(ctx); err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_ = c.Close()
		}
		ready <- err
	}()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case <-poll.C:
			if g.ToFirstLine == 0 && len(m.Console()) > 0 && hasReadyLine(m.Console()) {
				g.ToFirstLine = time.Since(begin)
			}
			continue
		case err = <-ready:
			g.ToReady = time.Since(begin)
		case <-ctx.Done():
			err = ctx.Err()
		case <-m.Done():
			err = m.Err()
		}
		break
	}
	if err != nil {
		console := m.Console()
		return nil, errors.Join(fmt.Errorf("the test guest did not come up: %w; console:\n%s", err, console), m.Kill())
	}
	return g, nil
}

// Call executes a request in the guest.
func (g *Guest) Call(ctx context.Context, req proto.Request) (proto.Response, error) {
	var resp proto.Response
	c, err := g.Dial(ctx, proto.ControlPort)
	if err != nil {
		return resp, err
	}
	defer c.Close()
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	if err := json.NewEncoder(c).Encode(req); err != nil {
		return resp, err
	}
	if err := json.NewDecoder(c).Decode(&resp); err != nil {
		return resp, fmt.Errorf("%s: %w", req.Op, err)
	}
	if resp.Error != "" {
		return resp, fmt.Errorf("%s: the guest says: %s", req.Op, resp.Error)
	}
	return resp, nil
}

// RoundTrips sends size bytes and waits for their echo, n times, and returns
// how long each took.
func (g *Guest) RoundTrips(ctx context.Context, n, size int) ([]time.Duration, error) {
	c, err := g.dial(ctx, proto.EchoPort)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	buf := make([]byte, size)
	took := make([]time.Duration, n)
	for i := range took {
		begin := time.Now()
		if _, err := c.Write(buf); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return nil, err
		}
		took[i] = time.Since(begin)
	}
	return took, nil
}

// Send moves so many bytes to the guest and returns how long it took until the
// guest had read them all.
func (g *Guest) Send(ctx context.Context, bytes int64) (time.Duration, error) {
	c, err := g.dial(ctx, proto.SinkPort)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	begin := time.Now()
	if err := binary.Write(c, binary.BigEndian, proto.SinkRequest{Length: bytes}); err != nil {
		return 0, err
	}
	buf := make([]byte, 256<<10)
	for sent := int64(0); sent < bytes; {
		n, err := c.Write(buf[:min(int64(len(buf)), bytes-sent)])
		if err != nil {
			return 0, err
		}
		sent += int64(n)
	}
	var sum proto.Sum
	if err := json.NewDecoder(c).Decode(&sum); err != nil {
		return 0, fmt.Errorf("the guest's answer: %w", err)
	}
	took := time.Since(begin)
	if sum.Bytes != bytes {
		return 0, fmt.Errorf("the guest got %d of %d bytes", sum.Bytes, bytes)
	}
	return took, nil
}

// Receive moves so many bytes from the guest and returns how long it took.
func (g *Guest) Receive(ctx context.Context, bytes int64) (time.Duration, error) {
	c, err := g.dial(ctx, proto.SourcePort)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	begin := time.Now()
	if err := binary.Write(c, binary.BigEndian, bytes); err != nil {
		return 0, err
	}
	buf := make([]byte, 256<<10)
	var got int64
	for got < bytes {
		n, err := c.Read(buf)
		if err != nil {
			return 0, fmt.Errorf("after %d of %d bytes: %w", got, bytes, err)
		}
		got += int64(n)
	}
	return time.Since(begin), nil
}

func (g *Guest) dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := g.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	return c, nil
}
