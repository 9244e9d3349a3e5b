package hostcheck

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

func (h *host) checkVMM(ctx context.Context) []Finding { return h.checkMac(ctx) }

// thisMac asks macOS.
func thisMac() mac {
	return mac{
		version: func() (string, error) { return unix.Sysctl("kern.osproductversion") },
		hypervisor: func() (bool, error) {
			n, err := unix.SysctlUint32("kern.hv_support")
			return n != 0, err
		},
		rosetta: func() (bool, bool) {
			_, err := os.Stat("/Library/Apple/usr/libexec/oah/RosettaLinux/rosetta")
			return runtime.GOARCH == "arm64", err == nil
		},
		shim: findShim,
		codesign: func(ctx context.Context, args ...string) (string, string, error) {
			var stdout, stderr bytes.Buffer
			cmd := exec.CommandContext(ctx, "/usr/bin/codesign", args...)
			cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, time.Second
			err := cmd.Run()
			return stdout.String(), stderr.String(), err
		},
	}
}
