package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
)

// completeDevices makes the spec's devices the machine's own. A container that
// may use all devices gets every node that the machine has; any other one only
// what it names, which the machine's kernel must have.
func completeDevices(s *specs.Spec) error {
	if api.AllDevices(s.Linux.Resources) && len(s.Linux.Devices) > 0 {
		all, err := machineDevices("/dev")
		if err != nil {
			return fmt.Errorf("list the machine's devices: %w", err)
		}
		s.Linux.Devices = all
		return nil
	}
	for _, d := range s.Linux.Devices {
		if d.Type == "p" {
			continue // a FIFO is made, wherever that is
		}
		if !hasDevice("/sys", d) {
			return invalid("device %s (%s %d:%d): the machine's kernel has no such device", d.Path, d.Type, d.Major, d.Minor)
		}
	}
	return nil
}

// hasDevice tells whether the kernel, by its sysfs, knows a device's number.
func hasDevice(sysfs string, d specs.LinuxDevice) bool {
	kind := "char"
	if d.Type == "b" {
		kind = "block"
	}
	_, err := os.Stat(filepath.Join(sysfs, "dev", kind, fmt.Sprintf("%d:%d", d.Major, d.Minor)))
	return err == nil
}

// perContainer are the names in /dev that each container has of its own, or
// that lead to one terminal alone: those that containerd leaves out as well when
// it lists a host's devices.
var perContainer = map[string]bool{"console": true, "pts": true, "ptmx": true, "shm": true, "mqueue": true, "fd": true}

// machineDevices lists the device nodes in dir, a devtmpfs.
func machineDevices(dir string) ([]specs.LinuxDevice, error) {
	var all []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // the device went away again
			return nil
		case err != nil:
			return err
		case perContainer[strings.TrimPrefix(name, dir+"/")]:
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.Type()&fs.ModeDevice == 0:
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			if err == unix.ENOENT {
				return nil
			}
			return &os.PathError{Op: "lstat", Path: name, Err: err}
		}
		kind := "c"
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = "b"
		}
		mode := os.FileMode(st.Mode & 0o777)
		all = append(all, specs.LinuxDevice{
			Path: filepath.Join("/dev", strings.TrimPrefix(name, dir)), Type: kind,
			Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
			FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		})
		return nil
	})
	return all, err
}

// privileged tells whether the spec is that of a privileged container, from
// which clients take away everything that confines it.
func privileged(s *specs.Spec) bool {
	return api.AllDevices(s.Linux.Resources) && len(s.Linux.MaskedPaths) == 0 &&
		len(s.Linux.ReadonlyPaths) == 0 && s.Linux.Seccomp == nil
}

// completeCapabilities gives a privileged process whose client had no
// capabilities to list all those of the machine's kernel: clients take a
// privileged container's capabilities from themselves, and one that is an
// ordinary user has none, which says nothing about the machine.
func completeCapabilities(p *specs.Process) {
	if p.Capabilities != nil && len(p.Capabilities.Bounding) > 0 {
		return
	}
	all := capabilities.KnownCapabilities()
	p.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
}
