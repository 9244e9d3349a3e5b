package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/qemu"
	"github.com/applevm/applevm/vmm/vmmtest"
	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

// fakeQEMU is a program in QEMU's place that does what script says.
func fakeQEMU(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n[ \"$1\" = -help ] && exit\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// fakeConfig has files that look like a kernel and an initramfs.
func fakeConfig(t *testing.T) vmm.Config {
	t.Helper()
	dir := t.TempDir()
	kernel := make([]byte, 64)
	copy(kernel, "\x7fELF\x02")
	copy(kernel[56:], "ARMd")
	cfg := vmm.Config{
		Name: "test", Dir: dir, CPUs: 1, Memory: 64 << 20,
		Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"),
	}
	if err := errors.Join(os.WriteFile(cfg.Kernel, kernel, 0o600), os.WriteFile(cfg.Initrd, kernel, 0o600)); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func start(t *testing.T, opts qemu.Options, cfg vmm.Config) (vmm.Machine, error) {
	t.Helper()
	if opts.CacheDir == "" {
		opts.CacheDir = t.TempDir()
	}
	d, err := qemu.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	m, err := d.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return m, m.Start(ctx)
}

func TestStartFailure(t *testing.T) {
	tests := []struct {
		name   string
		binary string
		is     error
		says   []string
	}{
		{"no QEMU", "/nonexistent/qemu", os.ErrNotExist, []string{"make deps", "apt install qemu-system-"}},
		{"no memory", fakeQEMU(t, "echo 'cannot set up guest memory: Cannot allocate memory' >&2; exit 1"),
			vmm.ErrInsufficientMemory, []string{"64 MiB"}},
		{"disk in use", fakeQEMU(t, `echo 'Failed to get "write" lock. Is another process using the image [/a.img]?' >&2; exit 1`),
			nil, []string{"in use by another machine", "/a.img"}},
		{"other failure", fakeQEMU(t, "echo 'something odd' >&2; exit 3"), nil, []string{"QEMU failed", "exit status 3", "something odd"}},
		{"silent failure", fakeQEMU(t, "exit 3"), nil, []string{"QEMU failed", "exit status 3"}},
		{"killed at once", fakeQEMU(t, "kill -9 $$"), nil, []string{"signal: killed"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := start(t, qemu.Options{Binary: tt.binary, Accel: "tcg"}, fakeConfig(t))
			if err == nil {
				t.Fatal("no error")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %q is not %v", err, tt.is)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q lacks %q", err, s)
				}
			}
			<-m.Done()
		})
	}
}

// TestStopOfDeafQEMU has a process that ignores SIGTERM, as QEMU does while it
// waits for a vhost-user device.
func TestStopOfDeafQEMU(t *testing.T) {
	d, err := qemu.New(qemu.Options{Binary: fakeQEMU(t, "trap '' TERM; while :; do sleep 0.05; done"), Accel: "tcg", CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	m, err := d.New(fakeConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- m.Start(t.Context()) }()
	for m.PID() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	if err := <-started; !errors.Is(err, vmm.ErrNotRunning) {
		t.Errorf("Start: %v", err)
	}
	if err := m.Err(); err != nil {
		t.Error(err)
	}
}

// A guest that breaks out of QEMU, and a client that takes the root of QEMU's
// process for the container's, find no file of the host. Who may not mount, cannot
// have that.
func TestRootOfQEMUIsEmpty(t *testing.T) {
	g := vmmtest.Boot(t, newDriver(t), vmmtest.ConfigFor(vmmtest.Image(t), t.TempDir()))
	if os.Getuid() != 0 {
		return
	}
	root := fmt.Sprintf("/proc/%d/root", g.PID())
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) > 0 {
		t.Errorf("QEMU's root has %v, %v", entries, err)
	}
	if err := os.Mkdir(root+"/new", 0o755); !errors.Is(err, syscall.EROFS) {
		t.Errorf("mkdir in QEMU's root: %v", err)
	}
	// Its own view of the way up ends there too.
	if _, err := os.Stat(root + "/../etc"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("beside QEMU's root: %v", err)
	}
}

// TestProbe counts what QEMU is asked for. The stand-in hangs when it is given
// KVM, as real QEMU does on some hosts.
func TestProbe(t *testing.T) {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Logf("without /dev/kvm nothing is probed: %v", err)
	} else {
		_ = f.Close()
	}
	log := filepath.Join(t.TempDir(), "log")
	for _, tt := range []struct {
		name, kvm, accel string
	}{
		{"KVM hangs", "sleep 60", "tcg"},
		{"KVM aborts", "exit 1", "tcg"},
		{"KVM works", "echo; echo applevm-agent; sleep 60", "kvm"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_ = os.Remove(log)
			script := fmt.Sprintf(`case "$*" in
*"-accel kvm"*vhost-user*) echo kvm >>%[1]s; exit 1;;
*"-accel kvm"*) echo probe >>%[1]s; echo $$ >>%[1]s.pid; exec 2>&-; %[2]s;;
*) echo tcg >>%[1]s; exit 1;;
esac
`, log, strings.Replace(tt.kvm, "sleep", "exec sleep", 1))
			opts := qemu.Options{Binary: fakeQEMU(t, script), CacheDir: t.TempDir()}
			cfg := fakeConfig(t)
			want := ""
			if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
				_ = f.Close()
				want = "probe\n" + strings.Repeat(tt.accel+"\n", 2)
			} else {
				want = "tcg\ntcg\n"
			}
			for range 2 {
				if _, err := start(t, opts, cfg); err == nil {
					t.Error("the stand-in does not fail")
				}
			}
			if b, err := os.ReadFile(log); err != nil || string(b) != want {
				t.Errorf("QEMU was run as %q, want %q; %v", b, want, err)
			}
			if b, err := os.ReadFile(log + ".pid"); err == nil {
				pid := strings.TrimSpace(string(b))
				if _, err := os.Stat("/proc/" + pid); err == nil {
					t.Errorf("the probe has left process %s", pid)
				}
				_ = os.Remove(log + ".pid")
			}
		})
	}
}

// TestManyDisks boots machines with the most disks that the smallest machine type
// has room for, and with more, which are on PCI and too many for messages of their
// own as interrupts.
func TestManyDisks(t *testing.T) {
	for _, n := range []int{5, 6, 120} { // with the share: all slots of the smallest machine, one more, many
		t.Run(fmt.Sprint(n), func(t *testing.T) { bootWithDisks(t, n) })
	}
}

func bootWithDisks(t *testing.T, n int) {
	cfg := vmmtest.ConfigFor(vmmtest.Image(t), t.TempDir())
	dir := t.TempDir()
	for i := range n {
		d := vmm.Disk{ID: fmt.Sprintf("disk-%03d", i), Path: filepath.Join(dir, fmt.Sprint(i)), ReadOnly: i > 0}
		if err := os.WriteFile(d.Path, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.Disks = append(cfg.Disks, d)
	}
	// And one device that this process serves.
	share := t.TempDir()
	if err := os.WriteFile(filepath.Join(share, "hello"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg.Shares = []vmm.Share{{Tag: "share", Path: share, ReadOnly: true}}
	g := vmmtest.Boot(t, newDriver(t), cfg)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := g.Call(ctx, proto.Request{Op: proto.OpReadOnly, Share: "share"}); err != nil {
		t.Error(err)
	}
	resp, err := g.Call(ctx, proto.Request{Op: proto.OpDisks})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, d := range resp.Disks {
		seen[d.Serial] = true
	}
	if len(seen) != len(cfg.Disks) {
		t.Errorf("the guest has %d of %d disks", len(seen), len(cfg.Disks))
	}
}

func TestTwoCPUs(t *testing.T) {
	cfg := vmmtest.ConfigFor(vmmtest.Image(t), t.TempDir())
	cfg.CPUs = 2
	g := vmmtest.Boot(t, newDriver(t), cfg)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := g.RoundTrips(ctx, 10, 100); err != nil {
		t.Error(err)
	}
}

// TestOtherArchitecture boots a guest that this host can only emulate.
func TestOtherArchitecture(t *testing.T) {
	arch := "arm64"
	if runtime.GOARCH == arch {
		arch = "amd64"
	}
	g := vmmtest.Boot(t, newDriver(t), vmmtest.ConfigFor(vmmtest.ImageFor(t, arch), t.TempDir()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := g.RoundTrips(ctx, 10, 100); err != nil {
		t.Error(err)
	}
	if err := g.Stop(ctx); err != nil {
		t.Error(err)
	}
}
