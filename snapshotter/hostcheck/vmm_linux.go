package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm/qemu"
)

// The ioctl KVM_GET_API_VERSION (linux/kvm.h), and the only answer that programs
// may go on with (Documentation/virt/kvm/api.rst).
const (
	kvmGetAPIVersion = 0xAE00
	kvmAPIVersion    = 12
)

// checkVMM looks for what runs machines.
func (h *host) checkVMM(ctx context.Context) []Finding {
	if d := h.cfg.Machine.Driver; d != "qemu" {
		return []Finding{fail(`set machine.driver = "qemu"`, "virtual machine monitor: machine.driver %q does not run on Linux", d)}
	}
	return []Finding{h.checkQEMU(ctx), h.checkAccelerator()}
}

// checkQEMU runs the emulator for its version.
func (h *host) checkQEMU(ctx context.Context) Finding {
	binary, pkg, known := qemu.Emulator(runtime.GOARCH)
	if !known {
		return fail("use a host of amd64 or arm64", "QEMU: machines of %s are not supported", runtime.GOARCH)
	}
	name, set := h.cfg.QEMU.Binary, true
	if name == "" {
		name, set = binary, false
	}
	path, err := exec.LookPath(name)
	switch {
	case err != nil && set:
		return fail("set qemu.binary to the emulator, or leave it empty to find it in PATH", "QEMU: qemu.binary %s: %s", name, lookReason(err))
	case err != nil:
		return fail("install it: apt install "+pkg, "QEMU: %s is not in PATH", name)
	}
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	line, _, _ := strings.Cut(string(out), "\n")
	switch version, isQEMU := strings.CutPrefix(line, "QEMU emulator version "); {
	case ctx.Err() != nil:
		return fail("see why it hangs", "QEMU: %s --version: no answer in time", path)
	case err != nil:
		return fail("install it anew: apt install --reinstall "+pkg, "QEMU: %s --version: %v", path, err)
	case !isQEMU:
		return fail("set qemu.binary to "+binary, "QEMU: %s is another program: it calls itself %q", path, line)
	default:
		return ok("QEMU: %s, version %s", path, version)
	}
}

// lookReason is why exec.LookPath found nothing.
func lookReason(err error) string {
	var e *exec.Error
	if errors.As(err, &e) {
		return reason(e.Err)
	}
	return reason(err)
}

// checkAccelerator says what will run the guest's instructions. That KVM may be
// used does not mean that guests run: this is for the shim's trial.
func (h *host) checkAccelerator() Finding {
	const meaning = "machines are emulated (TCG): correct, but several times slower"
	switch accel := h.cfg.QEMU.Accel; accel {
	case "tcg":
		return warn(`set qemu.accel = "auto" to use KVM where it works`, `accelerator: qemu.accel is "tcg", so %s`, meaning)
	case "hvf":
		return fail(`set qemu.accel = "auto"`, `accelerator: qemu.accel "hvf" exists on macOS only`)
	default:
		err := tryKVM(h.sys.kvm)
		switch {
		case err == nil && accel == "kvm":
			return ok("accelerator: this user may use %s", h.sys.kvm)
		case err == nil:
			return ok("accelerator: this user may use %s; the shim boots a trial guest once and falls back to emulation", h.sys.kvm)
		case accel == "kvm":
			return fail(kvmRemedy(err)+`, or set qemu.accel = "auto"`, `accelerator: qemu.accel is "kvm", but %s: %s`, h.sys.kvm, reason(err))
		}
		return warn(kvmRemedy(err), "accelerator: %s: %s, so %s", h.sys.kvm, reason(err), meaning)
	}
}

// tryKVM talks to KVM.
func tryKVM(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err == nil && version != kvmAPIVersion {
		err = fmt.Errorf("KVM's interface has version %d, not %d", version, kvmAPIVersion)
	}
	return err
}

func kvmRemedy(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "enable virtualization in the firmware, or nested virtualization where this host is a guest itself, and load kvm_intel or kvm_amd"
	case errors.Is(err, fs.ErrPermission):
		return "add the user that runs containerd to the group kvm"
	}
	return "see what the kernel says of KVM (dmesg)"
}

// thisMac has no answers: this is no Mac.
func thisMac() mac { return mac{} }
