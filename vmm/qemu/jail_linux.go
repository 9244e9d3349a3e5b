package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// newJail returns an empty, read-only directory that is mounted nowhere: QEMU
// makes it its root once it has opened its files. A guest that breaks out of
// QEMU then sees no file of the host. And clients that take /proc/PID/root of a
// task's process for the container's files (nerdctl cp) find nothing there, or
// what vmm.Config.Root shows, rather than the host's own files, which they would
// read and overwrite.
//
// It is nil, without an error, for a user who may not mount (mount_namespaces(7)).
func newJail() (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("an empty root for QEMU: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	for _, o := range [][2]string{{"source", "applevm"}, {"mode", "0555"}, {"size", "0"}, {"nr_inodes", "2"}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("an empty root for QEMU: option %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("an empty root for QEMU: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC,
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("an empty root for QEMU: %w", err)
	}
	return os.NewFile(uintptr(fd), "an empty root for QEMU"), nil
}

// helpTimeout bounds QEMU's printing of its options.
const helpTimeout = 30 * time.Second

// jailOption is how QEMU is told to change its root: -chroot DIR until 8.2,
// -run-with chroot=DIR from then on (docs/about/deprecated.rst and
// removed-features.rst of QEMU). What is known of a binary is cached.
func (d *driver) jailOption(ctx context.Context, binary string) (string, error) {
	id, err := fileID(binary)
	if err != nil {
		return "", err
	}
	key := "jail-" + id
	if v, ok := d.cache.get(key); ok {
		return v, nil
	}
	ctx, cancel := context.WithTimeout(ctx, helpTimeout)
	defer cancel()
	help, err := exec.CommandContext(ctx, binary, "-help").Output()
	if err != nil {
		return "", fmt.Errorf("%s -help: %w", binary, err)
	}
	option := "-chroot"
	if bytes.Contains(help, []byte("chroot=dir")) {
		option = "-run-with"
	}
	if d.cache.open() == nil {
		_ = d.cache.put(key, option) // asked again next time
	}
	return option, nil
}
