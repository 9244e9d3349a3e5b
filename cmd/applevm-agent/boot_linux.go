//go:build cgo

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/modules"
)

// boot readies the machine.
func boot() error {
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"see whether this is a machine's boot", inInitramfs},
		{"leave the initramfs's root", leaveRootfs},
		{"load the kernel's modules", func() error { return modules.LoadAll(modules.Dir) }},
		{"mount the system's directories", mountSystem},
		{"enable the cgroup controllers", enableControllers},
		{"bring up the loopback interface", loopbackUp},
		{"set the agent's limits", setLimits},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// inInitramfs refuses every root directory but an initramfs's, before anything is
// mounted: process 1 is also who is the first of a PID namespace, and that may have
// the mounts of a host.
func inInitramfs() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return err
	}
	// Linux, Documentation/filesystems/ramfs-rootfs-initramfs.rst: rootfs is one of the two.
	if st.Type != unix.RAMFS_MAGIC && st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("/ is not an initramfs (statfs(2) says type %#x)", st.Type)
	}
	return nil
}

// leaveRootfs makes / a mount that containers can pivot_root(2) away from, which
// the kernel's first one, rootfs, is not (pivot_root(2), NOTES): / is bound to a
// directory, moved over itself, and made the root.
func leaveRootfs() error {
	const dir = "/run"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("chdir: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return unix.Chdir("/")
}

func mountSystem() error {
	const quiet = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	for _, m := range []struct {
		fsType, dir string
		flags       uintptr
		data        string
	}{
		{"proc", "/proc", quiet, ""},
		{"sysfs", "/sys", quiet, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5"},
		{"tmpfs", "/dev/shm", quiet, "mode=1777"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"cgroup2", "/sys/fs/cgroup", quiet, "nsdelegate"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		err := unix.Mount(m.fsType, m.dir, m.fsType, m.flags, m.data)
		if errors.Is(err, unix.EBUSY) {
			continue // the kernel has mounted it itself (CONFIG_DEVTMPFS_MOUNT)
		}
		if err != nil {
			return fmt.Errorf("%s on %s: %w", m.fsType, m.dir, err)
		}
	}
	// libcontainer fills a container's tmpfs there (the option tmpcopyup).
	if err := os.MkdirAll("/tmp", 0o777); err != nil {
		return err
	}
	return os.Chmod("/tmp", 0o777|os.ModeSticky)
}

// enableControllers lets containers' cgroups use all that the kernel has.
func enableControllers() error {
	const root = "/sys/fs/cgroup/"
	b, err := os.ReadFile(root + "cgroup.controllers")
	if err != nil {
		return err
	}
	all := strings.Fields(string(b))
	if len(all) == 0 {
		return nil
	}
	// In one write: each takes the kernel tens of milliseconds. Some controllers
	// cannot be enabled in some states, which fails the whole write.
	const enable = root + "cgroup.subtree_control"
	if os.WriteFile(enable, []byte("+"+strings.Join(all, " +")), 0) == nil {
		return nil
	}
	for _, c := range all {
		_ = os.WriteFile(enable, []byte("+"+c), 0)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return os.NewSyscallError("SIOCSIFFLAGS", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo))
}

// setLimits keeps the agent alive when memory runs out and gives containers
// whose spec has no limits the ones that a container engine's service has.
func setLimits() error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		return err
	}
	const files = 1 << 20 // the kernel's fs.nr_open
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files})
}
