package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// idmap is a user namespace's mapping of IDs.
type idmap struct{ uids, gids []specs.LinuxIDMapping }

// userMapping returns the mapping of the container's own user namespace, nil if
// it has none.
func userMapping(s *specs.Spec) (*idmap, error) {
	for _, ns := range s.Linux.Namespaces {
		if ns.Type != specs.UserNamespace {
			continue
		}
		if len(s.Linux.UIDMappings) == 0 || len(s.Linux.GIDMappings) == 0 {
			return nil, invalid("the user namespace has no mapping of user or group IDs")
		}
		return &idmap{s.Linux.UIDMappings, s.Linux.GIDMappings}, nil
	}
	return nil, nil
}

// of returns the IDs by which the machine knows a user and a group of the
// container. One without a mapping stays what it is.
func (m *idmap) of(uid, gid uint32) (int, int) {
	if m == nil {
		return int(uid), int(gid)
	}
	in := func(l []specs.LinuxIDMapping, id uint32) int {
		for _, e := range l {
			if id >= e.ContainerID && id-e.ContainerID < e.Size {
				return int(e.HostID + (id - e.ContainerID))
			}
		}
		return int(id)
	}
	return in(m.uids, uid), in(m.gids, gid)
}

// forDisk is the mapping between a disk and the machine: what the container's
// root owns there belongs to ID 0 on the disk, as in the image. The machine's
// root, who makes overlayfs's own files, needs an ID on the disk too; it gets
// one that the container does not have.
func forDisk(l []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, 0, len(l)+1)
	used := func(id int) bool {
		for _, m := range out {
			if id >= m.ContainerID && id < m.ContainerID+m.Size {
				return true
			}
		}
		return false
	}
	rootMapped := false
	for _, e := range l {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(e.ContainerID), HostID: int(e.HostID), Size: int(e.Size)})
		rootMapped = rootMapped || e.HostID == 0 && e.Size > 0
	}
	if !rootMapped {
		id := maxID
		for used(id) {
			id--
		}
		out = append(out, syscall.SysProcIDMap{ContainerID: id, HostID: 0, Size: 1})
	}
	return out
}

// maxID is the highest user or group ID: the one above it means none, chown(2).
const maxID = 1<<32 - 2

// namespace makes a user namespace with the mapping for disks, and returns it. It
// lives in a process that is stopped before it runs anything (PTRACE_TRACEME
// stops at the exec) and gone when namespace returns.
func (m *idmap) namespace(starting func() func()) (*os.File, error) {
	defer starting()()
	// The process dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: forDisk(m.uids),
		GidMappings: forDisk(m.gids),
		Ptrace:      true,
		Pdeathsig:   unix.SIGKILL,
	}})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	_ = p.Kill()
	_, werr := p.Wait()
	if err == nil && werr != nil {
		_ = f.Close()
		err = werr
	}
	return f, err
}

// bindMapped mounts the tree at path on the new directory target, with its owners
// mapped by the user namespace ns.
func bindMapped(path, target string, ns *os.File) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd()),
	})
	if err != nil {
		return fmt.Errorf("map the owners of files: %w", err)
	}
	if err := os.Mkdir(target, 0o711); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return errors.Join(&os.PathError{Op: "move_mount", Path: target, Err: err}, os.Remove(target))
	}
	return nil
}

// mapped holds the mapped mounts of one root file system.
type mapped struct {
	ids *idmap
	dir string // made for them
	n   int
}

// bind mounts each of paths with mapped owners and replaces it by where.
func (m *mapped) bind(starting func() func(), paths ...*string) error {
	ns, err := m.ids.namespace(starting)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := os.Mkdir(m.dir, 0o711); err != nil {
		return err
	}
	for _, p := range paths {
		target := filepath.Join(m.dir, fmt.Sprint(m.n))
		if err := bindMapped(*p, target, ns); err != nil {
			return err
		}
		m.n++
		*p = target
	}
	return nil
}

// unmount undoes all binds. It may be repeated after a failure.
func (m *mapped) unmount() error {
	if m == nil {
		return nil
	}
	for ; m.n > 0; m.n-- {
		target := filepath.Join(m.dir, fmt.Sprint(m.n-1))
		if err := unix.Unmount(target, 0); err != nil {
			return fmt.Errorf("unmount a mapped tree of the root file system: %w", err)
		}
		_ = os.Remove(target)
	}
	_ = os.Remove(m.dir)
	return nil
}
