package vmmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/guest/image"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

// Suite is what a driver is tested with.
type Suite struct {
	// Driver makes the driver under test.
	Driver func(testing.TB) vmm.Driver
	// OwnProcess says that the guest runs in a process of its own, the VMM's,
	// which can be killed and must not outlive its parent.
	OwnProcess bool
	// HalfClose says that the driver's connections have CloseWrite.
	HalfClose bool
	// Shares says that the driver has vmm.Config.Shares. Some of what is tested needs
	// root on the host.
	Shares bool
}

const (
	// bootTimeout bounds each boot. It is for hangs: a boot under emulation takes
	// a few seconds, on a loaded machine many.
	bootTimeout = 2 * time.Minute
	// testTimeout bounds everything else.
	testTimeout = time.Minute
)

// Run runs the suite. It boots a handful of machines.
func Run(t *testing.T, s Suite) {
	if config := os.Getenv(parentEnv); config != "" {
		beParent(s.Driver(t), config) // does not return
	}
	img := Image(t)
	t.Run("Machine", func(t *testing.T) { s.testMachine(t, img) })
	if s.Shares {
		t.Run("Shares", func(t *testing.T) { s.testShares(t, img) })
	}
	t.Run("StartErrors", func(t *testing.T) { s.testStartErrors(t, img) })
	t.Run("NeverStarted", func(t *testing.T) { s.testNeverStarted(t, img) })
	t.Run("PowerOff", func(t *testing.T) { s.testPowerOff(t, img) })
	t.Run("KernelPanic", func(t *testing.T) { s.testKernelPanic(t, img) })
	t.Run("CanceledStart", func(t *testing.T) { s.testCanceledStart(t, img) })
	if s.OwnProcess {
		t.Run("KilledFromOutside", func(t *testing.T) { s.testKilledFromOutside(t, img) })
		t.Run("DiesWithParent", func(t *testing.T) { s.testDiesWithParent(t, img) })
	}
}

// Image builds the test guest's image for the host's architecture; it is
// removed at the test's end.
func Image(t testing.TB) image.Image {
	t.Helper()
	return ImageFor(t, runtime.GOARCH)
}

// ImageFor is Image for another architecture.
func ImageFor(t testing.TB, arch string) image.Image {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	img, err := BuildImage(ctx, arch, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// config returns a configuration in a directory of its own, and fails the test
// if the machine leaves something there.
func config(t testing.TB, img image.Image) vmm.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "m") // t.TempDir's are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, _ := filepath.Glob(filepath.Join(dir, "*"))
		if len(left) > 0 {
			t.Errorf("the machine left %v", left)
		}
		_ = os.RemoveAll(dir)
	})
	return ConfigFor(img, dir)
}

// Boot starts a guest that is killed at the test's end.
func Boot(t testing.TB, d vmm.Driver, cfg vmm.Config) *Guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	g, err := StartGuest(ctx, d, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first line after %v, ready after %v", g.ToFirstLine.Round(time.Millisecond), g.ToReady.Round(time.Millisecond))
	t.Cleanup(func() {
		if err := g.Kill(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			console := g.Console()
			t.Logf("console:\n%s", console[max(0, len(console)-4<<10):])
		}
	})
	return g
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// ended waits for the machine's end and returns its error.
func ended(t testing.TB, m vmm.Machine) error {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(testTimeout):
		t.Fatalf("the machine does not end; console:\n%s", m.Console())
	}
	return m.Err()
}

func (s *Suite) testStartErrors(t *testing.T, img image.Image) {
	tests := []struct {
		name   string
		change func(*vmm.Config)
		is     error
		says   string
	}{
		{"missing kernel", func(c *vmm.Config) { c.Kernel = "/nonexistent/vmlinux" }, os.ErrNotExist, "/nonexistent/vmlinux"},
		{"missing initramfs", func(c *vmm.Config) { c.Initrd = "/nonexistent/initrd" }, os.ErrNotExist, "/nonexistent/initrd"},
		{"missing disk", func(c *vmm.Config) { c.Disks = []vmm.Disk{{ID: "a", Path: "/nonexistent/a.img"}} }, os.ErrNotExist, "/nonexistent/a.img"},
		{"kernel of another kind", func(c *vmm.Config) { c.Kernel = c.Initrd }, nil, "guest kernel"},
		{"more memory than the host has", func(c *vmm.Config) { c.Memory = 1 << 50 }, vmm.ErrInsufficientMemory, "MiB"},
		{"no memory", func(c *vmm.Config) { c.Memory = 0 }, nil, "memory"},
		{"no processor", func(c *vmm.Config) { c.CPUs = 0 }, nil, "CPU"},
		{"disk name too long", func(c *vmm.Config) { c.Disks = []vmm.Disk{{ID: strings.Repeat("a", 21), Path: "/dev/null"}} }, nil, "aaa"},
		{"disk name twice", func(c *vmm.Config) {
			c.Disks = []vmm.Disk{{ID: "a", Path: c.Kernel, ReadOnly: true}, {ID: "a", Path: c.Kernel, ReadOnly: true}}
		}, nil, `"a"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(t, img)
			tt.change(&cfg)
			m, err := s.Driver(t).New(cfg)
			if err == nil {
				err = m.Start(timeout(t))
				_ = ended(t, m)
			}
			if err == nil {
				t.Fatal("no error")
			}
			if tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q: not %v, or without %q", err, tt.is, tt.says)
			}
		})
	}
}

func (s *Suite) testNeverStarted(t *testing.T, img image.Image) {
	m, err := s.Driver(t).New(config(t, img))
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.Listen(proto.ReadyPort)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Listen(proto.ReadyPort); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second Listen: %v", err)
	}
	if _, err := m.Dial(timeout(t), 1); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("Dial: %v", err)
	}
	if err := m.Pause(timeout(t)); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("Pause: %v", err)
	}
	if m.PID() != 0 {
		t.Errorf("PID %d", m.PID())
	}
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	if err := ended(t, m); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); err == nil {
		t.Error("Accept after the end")
	}
	if err := m.Start(timeout(t)); err == nil {
		t.Error("Start after Kill")
	}
}

func (s *Suite) testPowerOff(t *testing.T, img image.Image) {
	g := Boot(t, s.Driver(t), config(t, img))
	// It never answers.
	if _, err := g.Call(timeout(t), proto.Request{Op: proto.OpPowerOff}); err == nil {
		t.Error("an answer from a machine that is off")
	}
	if err := ended(t, g); err != nil {
		t.Errorf("Err after the guest has powered off: %v", err)
	}
}

func (s *Suite) testKernelPanic(t *testing.T, img image.Image) {
	cfg := config(t, img)
	cfg.Cmdline = append(cfg.Cmdline, "vmmtest.exit")
	m, err := s.Driver(t).New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	err = ended(t, m)
	if err == nil {
		t.Fatal("no error after a panic")
	}
	for _, says := range []string{"panic", "asked to exit by vmmtest.exit", "Attempted to kill init"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("the error lacks %q: %v", says, err)
		}
	}
}

func (s *Suite) testCanceledStart(t *testing.T, img image.Image) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, err := s.Driver(t).New(config(t, img))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v", err)
	} else if err == nil {
		_ = m.Kill() // it was faster
	}
	_ = ended(t, m)
}

func (s *Suite) testKilledFromOutside(t *testing.T, img image.Image) {
	g := Boot(t, s.Driver(t), config(t, img))
	c, err := g.Dial(timeout(t), proto.EchoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := syscall.Kill(g.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := ended(t, g); err == nil || !strings.Contains(err.Error(), "killed") || !strings.Contains(err.Error(), "conformance guest") {
		t.Errorf("the error lacks the signal or the console's last lines: %v", err)
	}
	_ = c.SetDeadline(time.Now().Add(testTimeout))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read on a connection to a dead guest: %v", err)
	}
	if _, err := g.Dial(timeout(t), proto.EchoPort); !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("Dial: %v", err)
	}
}
