package agenttest_test

import (
	"bytes"
	"os/exec"
	"runtime"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func hostArch() string { return runtime.GOARCH }

// limits adds what a container engine's default spec has: device rules, a
// memory limit and a seccomp filter.
func limits(s *specs.Spec) {
	memory := int64(16 << 20)
	s.Linux.Resources = &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: &memory},
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	s.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}},
	}
}

// sharePIDs lets a container see the machine's processes.
func sharePIDs(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] }

// checkClean fails the test if the image's file system needs repair or its
// journal replay.
func checkClean(t *testing.T, img string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fn", img).CombinedOutput()
	if err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	out, err = exec.Command("dumpe2fs", "-h", img).CombinedOutput()
	if err != nil {
		t.Fatalf("dumpe2fs: %v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("needs_recovery")) {
		t.Errorf("the journal was not written back:\n%s", out)
	}
}
