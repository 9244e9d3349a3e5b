package build

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/guest/image"
)

// bootTimeout bounds one boot: under emulation and on a loaded machine they
// take a few seconds.
const bootTimeout = 2 * time.Minute

// kernels are those to boot for arch: Debian's, and ours where it was built.
func kernels(t *testing.T, arch string) []string {
	t.Helper()
	kinds := []string{KindDebian}
	if _, ok, err := builtKernel(arch); err != nil {
		t.Fatal(err)
	} else if ok {
		kinds = append(kinds, KindOwn)
	}
	return kinds
}

// TestBoot boots images with an init that checks from inside that the kernel
// and its modules give a guest what it needs.
func TestBoot(t *testing.T) {
	for _, arch := range archs(t) {
		init := compileInit(t, arch)
		for _, kind := range kernels(t, arch) {
			t.Run(arch+"/"+kind, func(t *testing.T) {
				img := buildImage(t, Spec{Arch: arch, Kernel: kind, Init: init})
				if img.KernelKind != kind {
					t.Errorf("the image has kernel %s", img.KernelKind)
				}
				console := boot(t, img)
				if !strings.Contains(readUntil(t, console, "PASSED", "FAILED"), "PASSED") {
					t.Error("the guest is not satisfied")
				}
				// The init's reboot ends the machine.
				if _, err := io.Copy(io.Discard, console); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestBootAgent boots what `mkimage` makes by itself; the agent's first line
// says that the kernel runs it.
func TestBootAgent(t *testing.T) {
	for _, arch := range archs(t) {
		agent := filepath.Join(t.TempDir(), "agent")
		if err := BuildAgent(t.Context(), arch, agent); err != nil {
			t.Fatal(err)
		}
		for _, kind := range kernels(t, arch) {
			t.Run(arch+"/"+kind, func(t *testing.T) {
				console := boot(t, buildImage(t, Spec{Arch: arch, Kernel: kind, Init: agent}))
				readUntil(t, console, api.ReadyLine)
			})
		}
	}
}

// archs are the architectures to boot: this machine's, and arm64 emulated unless
// the tests are to be short.
func archs(t *testing.T) []string {
	t.Helper()
	if runtime.GOARCH != "arm64" && !testing.Short() {
		return []string{runtime.GOARCH, "arm64"}
	}
	return []string{runtime.GOARCH}
}

func buildImage(t *testing.T, spec Spec) image.Image {
	t.Helper()
	spec.Out = t.TempDir()
	img, err := Build(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func compileInit(t *testing.T, arch string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "init")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", out, "./testdata/init")
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

// boot starts a machine with one disk and returns its console. The machine ends
// with the test, or with the process that runs the tests.
func boot(t *testing.T, img image.Image) io.Reader {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, append([]byte("content of the disk"), make([]byte, 1<<20-19)...), 0o644); err != nil {
		t.Fatal(err)
	}
	binary, bus, params := "qemu-system-x86_64", "device", []string{"console=ttyS0", "reboot=t"}
	var args []string
	switch {
	case img.Arch == "arm64":
		binary, params = "qemu-system-aarch64", []string{"console=ttyAMA0"}
		args = []string{"-M", "virt", "-cpu", "max,pauth-impdef=on"}
	case img.VirtioMMIO:
		args = []string{"-M", "microvm,acpi=off", "-cpu", "max"}
	default:
		bus = "pci"
		args = []string{"-M", "q35", "-cpu", "max"}
	}
	args = append(args, "-accel", "tcg", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-kernel", img.Kernel, "-initrd", img.Initrd, "-append", strings.Join(append(params, img.Cmdline...), " "),
		"-drive", "if=none,id=d,format=raw,file="+disk, "-device", "virtio-blk-"+bus+",drive=d,serial=test-disk",
		"-device", "virtio-rng-"+bus)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	started := make(chan error)
	ended := make(chan struct{})
	go func() {
		// Pdeathsig is about the thread: it must live as long as QEMU.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		started <- cmd.Start()
		if cmd.Process != nil {
			_ = cmd.Wait() // killed by the test's end or ended by the guest
		}
	}()
	err = <-started
	w.Close()
	t.Cleanup(func() {
		cancel()
		<-ended
		r.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// readUntil reads the console until a line that begins with one of the words,
// which it returns; if there is none, the test fails with all that was read.
func readUntil(t *testing.T, console io.Reader, words ...string) string {
	t.Helper()
	var all strings.Builder
	s := bufio.NewScanner(console)
	for s.Scan() {
		all.WriteString(s.Text() + "\n")
		for _, w := range words {
			if strings.HasPrefix(strings.TrimSpace(s.Text()), w) {
				t.Log(s.Text())
				return s.Text()
			}
		}
	}
	t.Fatalf("the machine ended without %q: %v\n%s", words, s.Err(), all.String())
	return ""
}
