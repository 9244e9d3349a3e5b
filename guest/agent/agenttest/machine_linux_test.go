package agenttest_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/agent/agenttest"
	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/guest/image"
	"github.com/applevm/applevm/guest/image/build"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/qemu"
)

// guestImage is the agent's image for one architecture, built once for all tests.
type guestImage struct {
	once sync.Once
	dir  string
	img  image.Image
	err  error
}

var guestImages = map[string]*guestImage{"amd64": {}, "arm64": {}}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, g := range guestImages {
		if g.dir != "" {
			_ = os.RemoveAll(g.dir)
		}
	}
	os.Exit(code)
}

func agentImage(t *testing.T, arch string) image.Image {
	t.Helper()
	g := guestImages[arch]
	g.once.Do(func() {
		if g.dir, g.err = os.MkdirTemp("", "agent"); g.err != nil {
			return
		}
		bin := filepath.Join(g.dir, "init")
		if g.err = build.BuildAgent(context.Background(), arch, bin); g.err != nil {
			return
		}
		g.img, g.err = build.Build(context.Background(), build.Spec{Arch: arch, Kernel: os.Getenv("APPLEVM_TEST_KERNEL"), Init: bin, Out: g.dir})
	})
	if g.err != nil {
		t.Fatal(g.err)
	}
	return g.img
}

// machine is the agent in a machine, and its host.
type machine struct {
	*agenttest.Host
	vm vmm.Machine
}

// newMachine returns a machine with h's disks that is not started yet.
func newMachine(t *testing.T, h *agenttest.Host, arch string) (vmm.Machine, image.Image) {
	t.Helper()
	img := agentImage(t, arch)
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	var opts qemu.Options
	nested := arch == "arm64" // the one whose processor QEMU emulates with all that KVM needs
	if nested {
		opts.Accel = "tcg"
	}
	d, err := qemu.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	cfg := vmm.Config{
		Name: t.Name(), Dir: dir, Arch: arch, CPUs: 1, Memory: 512 << 20,
		Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: img.Cmdline, Nested: nested,
	}
	for _, i := range h.Images() {
		cfg.Disks = append(cfg.Disks, vmm.Disk{ID: i.Serial, Path: i.Path, ReadOnly: i.ReadOnly})
	}
	vm, err := d.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = vm.Kill()
		_ = os.RemoveAll(dir)
	})
	return vm, img
}

// boot starts a machine with h's disks and waits for the agent.
func boot(t *testing.T, h *agenttest.Host, arch string) *machine {
	t.Helper()
	vm, img := newMachine(t, h, arch)
	control, err := vm.Listen(api.ControlPort)
	if err != nil {
		t.Fatal(err)
	}
	streams, err := vm.Listen(api.StreamPort)
	if err != nil {
		t.Fatal(err)
	}
	ctx := agenttest.Context(t)
	start := time.Now()
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = vm.Kill() })
	conn, err := control.Accept()
	stop()
	if err != nil {
		t.Fatalf("the agent did not come up: %v, %v; console:\n%s", err, vm.Err(), vm.Console())
	}
	h.Connect(conn)
	t.Logf("%s kernel: agent connected %v after the start", img.KernelKind, time.Since(start).Round(time.Millisecond))
	go func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			go h.TakeStream(c)
		}
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", vm.Console())
		}
		_ = conn.Close()
		waitForEnd(t, vm)
	})
	return &machine{h, vm}
}

// waitForEnd waits until the machine has powered itself off.
func waitForEnd(t *testing.T, vm vmm.Machine) {
	t.Helper()
	select {
	case <-vm.Done():
		if err := vm.Err(); err != nil {
			t.Errorf("the machine ended with %v", err)
		}
	case <-time.After(60 * time.Second):
		t.Errorf("the machine does not end by itself; console:\n%s", vm.Console())
	}
}

func TestMachine(t *testing.T) {
	h := agenttest.New(t, t.TempDir())
	fs := h.System()
	m := boot(t, h, hostArch())
	ctx := agenttest.Context(t)

	t.Run("info", func(t *testing.T) {
		info, err := m.Guest.Info(ctx, &guestv1.InfoRequest{})
		if err != nil || info.Version != api.Version || info.AgentStartNs <= 0 || info.AgentReadyNs <= info.AgentStartNs {
			t.Errorf("info %v, %v", info, err)
		}
		t.Logf("agent's first instruction %v after the kernel's start, connected %v after it", time.Duration(info.GetAgentStartNs()), time.Duration(info.GetAgentReadyNs()))
		if !bytes.Contains(m.vm.Console(), []byte(api.ReadyLine)) {
			t.Errorf("the console has no ready line: %q", m.vm.Console())
		}
	})
	t.Run("output, exit code and clock", func(t *testing.T) {
		r := m.Start(agenttest.Config{ID: "a", Args: []string{"sh", "-c", "date +%Y; uname -r >&2; exit 7"}, Options: func(o *guestv1.ContainerOptions) {
			o.ClockUnixNanos = time.Date(2031, 5, 5, 0, 0, 0, 0, time.UTC).UnixNano()
		}}, fs)
		if code := r.Finish(); code != 7 || r.Stdout.String() != "2031\n" {
			t.Errorf("exit code %d, output %q", code, r.Stdout.String())
		}
		if got, want := strings.TrimSpace(r.Stderr.String()), agentImage(t, hostArch()).Release; got != want {
			t.Errorf("the kernel is %q, want %q", got, want)
		}
		r.MustDelete()
	})
	t.Run("cgroup, devices, seccomp", func(t *testing.T) {
		r := m.Start(agenttest.Config{ID: "c", Args: []string{"sh", "-c", "cat /proc/self/cgroup; mknod /tmp/sda b 254 0 && head -c 1 /tmp/sda; mkdir /tmp/nope; echo $?"}, Spec: limits}, fs)
		r.Finish()
		if got := r.Stdout.String(); got != "0::/agent-test-c\n1\n" {
			t.Errorf("output %q", got)
		}
		for _, want := range []string{"/tmp/sda: Operation not permitted", "'/tmp/nope': Operation not permitted"} {
			if got := r.Stderr.String(); !strings.Contains(got, want) {
				t.Errorf("errors %q, want %q in them", got, want)
			}
		}
		r.MustDelete()
	})
	t.Run("memory limit", func(t *testing.T) {
		r := m.Start(agenttest.Config{ID: "m", Args: []string{"sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1"}, Spec: limits}, fs)
		if code := r.Finish(); code != 137 {
			t.Errorf("exit code %d, want 137 (killed for its memory); %s", code, r.Stderr.String())
		}
		r.MustDelete()
	})
	t.Run("terminal", func(t *testing.T) {
		r := m.Start(agenttest.Config{ID: "t", Args: []string{"sh"}, Terminal: true, Stdin: true}, fs)
		if _, err := m.Task.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: r.ID, Width: 100, Height: 30}); err != nil {
			t.Error(err)
		}
		if _, err := r.In.Write([]byte("stty size; exit 5\n")); err != nil {
			t.Error(err)
		}
		if code := r.Finish(); code != 5 || !strings.Contains(r.Stdout.String(), "30 100\r\n") {
			t.Errorf("exit code %d, output %q", code, r.Stdout.String())
		}
		r.MustDelete()
	})
	t.Run("network of the machine", func(t *testing.T) {
		r := m.Start(agenttest.Config{ID: "n", Args: []string{"sh", "-c", "ifconfig lo | grep -c 'UP LOOPBACK'; ping -c 1 -W 5 127.0.0.1 >&2; echo $?"}, Spec: func(s *specs.Spec) {
			s.Linux.Namespaces = s.Linux.Namespaces[:4]
			s.Process.Capabilities.Effective = append(s.Process.Capabilities.Effective, "CAP_NET_RAW")
			s.Process.Capabilities.Permitted = s.Process.Capabilities.Effective
			s.Process.Capabilities.Bounding = s.Process.Capabilities.Effective
		}}, fs)
		r.Finish()
		if got := r.Stdout.String(); got != "1\n0\n" {
			t.Errorf("output %q, %s", got, r.Stderr.String())
		}
		r.MustDelete()
	})
	t.Run("errors", func(t *testing.T) {
		for arg, want := range map[string]string{
			"nosuch":  `exec: "nosuch": executable file not found in $PATH`,
			"foreign": "pull the image for linux/" + hostArch(),
		} {
			if _, err := m.Create(agenttest.Config{ID: "e", Args: []string{arg}}, fs); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q in it", err, want)
			}
		}
	})
	t.Run("execs and kill", func(t *testing.T) {
		box := m.Box(fs)
		const n = 10
		start := time.Now()
		for i := range n {
			x := box.MustExec(fmt.Sprint("x", i), "sh", "-c", "head -c 200000 /dev/zero; echo end")
			if x.Finish() != 0 || len(x.Stdout.String()) != 200_004 {
				t.Fatalf("exec %d: %d bytes", i, len(x.Stdout.String()))
			}
			x.MustDelete()
		}
		t.Logf("%v an exec", time.Since(start)/n)
		if err := box.Kill(unix.SIGKILL, false); err != nil {
			t.Fatal(err)
		}
		if code := box.Finish(); code != 137 {
			t.Errorf("exit code %d, want 137", code)
		}
		box.MustDelete()
	})
	t.Run("fast exits lose no output", func(t *testing.T) {
		const n = 10
		start := time.Now()
		for range n {
			r := m.Start(agenttest.Config{ID: "f", Args: []string{"sh", "-c", "head -c 70000 /dev/zero; echo end"}}, fs)
			if r.Finish() != 0 || len(r.Stdout.String()) != 70_004 {
				t.Fatalf("%d bytes", len(r.Stdout.String()))
			}
			r.MustDelete()
		}
		t.Logf("%v a container", time.Since(start)/n)
	})
	t.Run("two containers", func(t *testing.T) {
		one := m.Box(&guestv1.Rootfs{Lower: fs.Lower})
		two := m.Start(agenttest.Config{ID: "two", Args: []string{"echo", "two"}}, fs)
		two.Finish()
		if got := two.Stdout.String(); got != "two\n" {
			t.Errorf("output %q", got)
		}
		two.MustDelete()
		if err := one.Kill(unix.SIGKILL, false); err != nil {
			t.Fatal(err)
		}
		one.Finish()
		one.MustDelete()
	})
	t.Run("the agent's memory", func(t *testing.T) {
		r := m.Start(agenttest.Config{ID: "mem", Args: []string{"sh", "-c", "grep -E 'VmHWM|RssAnon' /proc/1/status; cat /proc/1/oom_score_adj"}, Spec: sharePIDs}, fs)
		r.Finish()
		t.Logf("%q", r.Stdout.String())
		if !strings.HasSuffix(r.Stdout.String(), "\n-1000\n") {
			t.Errorf("the agent may be killed when memory runs out: %q", r.Stdout.String())
		}
		r.MustDelete()
	})
	t.Run("shutdown leaves clean disks", func(t *testing.T) {
		r := m.Start(agenttest.Config{ID: "s", Args: []string{"sh", "-c", "echo kept >/file; echo ready; sleep 1000"}}, fs)
		r.Stdout.WaitFor(t, "ready")
		if _, err := m.Guest.Shutdown(ctx, &guestv1.ShutdownRequest{}); err != nil {
			t.Fatal(err)
		}
		img, _ := m.Image("rw")
		checkClean(t, img.Path)
	})
}

// With this many disks the machine has PCI and ACPI, where it has neither with few.
func TestMachineWithManyDisks(t *testing.T) {
	h := agenttest.New(t, t.TempDir())
	fs := &guestv1.Rootfs{Lower: []*guestv1.Tree{h.Layer("base", agenttest.Busybox(t))}, Writable: h.Writable("rw")}
	const n = 10
	for i := range n {
		fs.Lower = append(fs.Lower, h.Layer(fmt.Sprint("layer", i), func(d string) {
			for _, f := range []string{"top", fmt.Sprint("file", i)} {
				if err := os.WriteFile(filepath.Join(d, f), []byte(fmt.Sprint(i)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}))
	}
	m := boot(t, h, hostArch())
	r := m.Start(agenttest.Config{ID: "d", Args: []string{"sh", "-c", "cat /top; ls / | grep -c file"}}, fs)
	if code := r.Finish(); code != 0 || r.Stdout.String() != "910\n" {
		t.Errorf("exit code %d, output %q, %q", code, r.Stdout.String(), r.Stderr.String())
	}
	r.MustDelete()
}

func TestMachineWithoutItsHostSaysSoAndEnds(t *testing.T) {
	h := agenttest.New(t, t.TempDir())
	vm, _ := newMachine(t, h, hostArch())
	if err := vm.Start(agenttest.Context(t)); err != nil {
		t.Fatal(err)
	}
	waitForEnd(t, vm)
	if !bytes.Contains(vm.Console(), []byte("the machine cannot go on: connect to the host: ")) {
		t.Errorf("the console has no reason: %q", vm.Console())
	}
}

// The program is one of Go, because Debian's busybox is the host's.
func TestMachineARM64(t *testing.T) {
	if testing.Short() {
		t.Skip("emulates arm64: left out with -short")
	}
	h := agenttest.New(t, t.TempDir())
	fs := &guestv1.Rootfs{Lower: []*guestv1.Tree{h.Layer("base", func(d string) {
		for _, sub := range []string{"bin", "dev", "proc"} {
			if err := os.Mkdir(filepath.Join(d, sub), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", filepath.Join(d, "bin/hello"), "./testdata/hello")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})}, Writable: h.Writable("rw")}
	m := boot(t, h, "arm64")
	for program, want := range map[string]string{"hello": "hello from arm64\n", "nested": "a machine in the machine\n"} {
		r := m.Start(agenttest.Config{ID: "arm", Args: []string{"hello", program}, Spec: func(s *specs.Spec) {
			limits(s)
			if program == "nested" {
				major, minor := int64(10), int64(232)
				s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: major, Minor: minor})
				s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"})
			}
		}}, fs)
		if code := r.Finish(); code != 3 || r.Stdout.String() != want {
			t.Errorf("exit code %d, output %q, %q", code, r.Stdout.String(), r.Stderr.String())
		}
		r.MustDelete()
	}
}
