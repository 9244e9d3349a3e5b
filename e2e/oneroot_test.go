package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// oneRootEnv is set once oneRoot has done its work.
const oneRootEnv = "APPLEVM_E2E_ONE_ROOT"

// oneRoot starts this program anew in a mount namespace of its own, if the host's root
// directory is mounted twice, as in some sandboxes: runc then leaves one of the two in
// its containers, execs see the host's files, and there is nothing to compare with.
func oneRoot() {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || os.Getuid() != 0 || os.Getenv(oneRootEnv) != "" || strings.Count(string(mounts), " / / ") < 2 {
		return
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		fmt.Fprintln(os.Stderr, "the root directory is mounted twice:", err)
		return
	}
	const script = `while [ "$(grep -c ' / / ' /proc/self/mountinfo)" -gt 1 ]; do umount -l / || exit 1; done; exec "$@"`
	args := append([]string{unshare, "--mount", "--propagation", "private", "sh", "-c", script, "sh"}, os.Args...)
	err = syscall.Exec(unshare, args, append(os.Environ(), oneRootEnv+"=1"))
	fmt.Fprintln(os.Stderr, "the root directory is mounted twice:", err)
}
