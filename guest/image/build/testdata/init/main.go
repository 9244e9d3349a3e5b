// Init is what the boot tests put into an image: it loads the modules, says
// whether what a guest needs is there, and ends the machine.
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/modules"
)

func main() {
	if err := check(); err != nil {
		fmt.Println("FAILED:", err)
	} else {
		fmt.Println("PASSED")
	}
	unix.Sync()
	fmt.Println("the machine does not end:", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
	select {}
}

func check() error {
	if err := modules.LoadAll(modules.Dir); err != nil {
		return err
	}
	// A second time nothing happens: each module is there.
	if err := modules.LoadAll(modules.Dir); err != nil {
		return err
	}
	for _, m := range []struct{ dir, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/sys/fs/cgroup", "cgroup2"}} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.kind, err)
		}
	}
	if err := filesystems("ext4", "overlay", "tmpfs", "erofs", "virtiofs", "mqueue", "devpts"); err != nil {
		return err
	}
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return err
	}
	for _, c := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		if !slices.Contains(strings.Fields(string(controllers)), c) {
			return fmt.Errorf("no cgroup controller %s in %q", c, controllers)
		}
	}
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			return err
		}
	}
	// EFAULT is the answer of a kernel that has seccomp filters to a filter at
	// address 0 (seccomp(2)).
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, 1, 0, 0); errno != unix.EFAULT {
		return fmt.Errorf("seccomp: %w", errno)
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	unix.Close(fd)
	return disk()
}

func filesystems(want ...string) error {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for _, w := range want {
		if !slices.Contains(strings.Fields(string(b)), w) {
			return fmt.Errorf("no file system %s", w)
		}
	}
	return nil
}

// disk reads the disk that the test attaches.
func disk() error {
	serial, err := os.ReadFile("/sys/block/vda/serial")
	if err != nil {
		return err
	}
	if string(serial) != "test-disk" {
		return fmt.Errorf("the disk's serial is %q", serial)
	}
	b := make([]byte, 512)
	f, err := os.Open("/dev/vda")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Read(b); err != nil {
		return err
	}
	if !strings.HasPrefix(string(b), "content of the disk") {
		return fmt.Errorf("the disk holds %q", b)
	}
	if _, err := os.ReadFile("/sys/class/misc/hw_random/rng_current"); err != nil {
		return err
	}
	return nil
}
