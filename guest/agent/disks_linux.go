package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// diskTimeout is how long a disk that the host has attached may take to appear.
// Disks are there when the machine starts, so that little is enough, and a user
// who is told of a missing one should not have to wait.
const diskTimeout = 3 * time.Second

// SysfsDisks finds a virtio-blk disk by the serial number that the kernel shows
// in /sys/block/*/serial, and returns its device node.
func SysfsDisks(ctx context.Context, serial string) (string, error) {
	for {
		names, err := filepath.Glob("/sys/block/*/serial")
		if err != nil {
			return "", err
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				continue // the disk went away again
			}
			if strings.TrimRight(string(b), "\x00\n ") == serial {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(n))), nil
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("disk %q is not attached to the machine", serial)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// disks mounts each disk once, for all the trees that containers take from it.
type disks struct {
	dir  string
	find func(ctx context.Context, serial string) (string, error)

	mu      sync.Mutex
	mounted map[string]*mountedDisk
}

type mountedDisk struct {
	path     string
	writable bool
	users    int
}

func newDisks(dir string, find func(context.Context, string) (string, error)) *disks {
	return &disks{dir: dir, find: find, mounted: make(map[string]*mountedDisk)}
}

// acquire mounts a disk and returns its mount point. A writable disk has one user.
func (d *disks) acquire(ctx context.Context, serial, fsType string, writable bool) (string, error) {
	if !validDiskID(serial) {
		return "", invalid("%q is no disk ID", serial)
	}
	// erofs has no writing: what containerd's erofs snapshotter makes of layers.
	if fsType != "ext4" && (fsType != "erofs" || writable) {
		return "", invalid("disk %q: file system type %q is not supported", serial, fsType)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m, ok := d.mounted[serial]; ok {
		if writable || m.writable {
			return "", fmt.Errorf("disk %q is in use by another container: %w", serial, errdefs.ErrFailedPrecondition)
		}
		m.users++
		return m.path, nil
	}
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	dev, err := d.find(ctx, serial)
	if err != nil {
		return "", err
	}
	path := d.mountPoint(serial)
	if err := os.Mkdir(path, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	// noinit_itable: zeroing the inode tables in the background would only
	// fill the host's sparse image.
	flags, data := uintptr(0), "noinit_itable,errors=remount-ro"
	if !writable {
		flags, data = unix.MS_RDONLY, ""
	}
	if err := unix.Mount(dev, path, fsType, flags, data); err != nil {
		_ = os.Remove(path)
		if !writable && errors.Is(err, unix.EROFS) {
			return "", fmt.Errorf("mount disk %q read-only: who wrote to it was killed, and its journal is to be replayed: mount it writable once", serial)
		}
		return "", fmt.Errorf("mount disk %q: %w: its image is damaged or no %s", serial, err, fsType)
	}
	d.mounted[serial] = &mountedDisk{path: path, writable: writable, users: 1}
	return path, nil
}

// mountPoint is where an acquired disk is mounted.
func (d *disks) mountPoint(serial string) string { return filepath.Join(d.dir, serial) }

// release gives up one use of a disk; the last one unmounts it.
func (d *disks) release(serial string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.mounted[serial]
	if !ok {
		return nil
	}
	if m.users > 1 {
		m.users--
		return nil
	}
	if err := unix.Unmount(m.path, 0); err != nil {
		return fmt.Errorf("unmount disk %q: %w", serial, err)
	}
	delete(d.mounted, serial)
	return os.Remove(m.path)
}

func validDiskID(s string) bool {
	if s == "" || len(s) > maxDiskID || s == "." || s == ".." {
		return false
	}
	return strings.Trim(s, diskIDChars) == ""
}

// What vmm.Disk.ID may be; 20 bytes is virtio-blk's VIRTIO_BLK_ID_BYTES.
const (
	maxDiskID   = 20
	diskIDChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
)
