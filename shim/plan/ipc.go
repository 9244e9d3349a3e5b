package plan

import (
	"fmt"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// tmpfsMagic is what statfs(2) says of a tmpfs on Linux.
const tmpfsMagic = 0x01021994

// sharedMemory turns a bind of the host's IPC directories, by which clients give
// a container the host's or another container's shared memory, into a mount of
// the machine's own: memory of the host cannot be shared with a machine. tmpfs
// tells whether a directory is a tmpfs, and its size in bytes.
func sharedMemory(m specs.Mount, dest string, tmpfs func(string) (int64, bool)) (specs.Mount, bool) {
	switch {
	case dest == "/dev/mqueue" && m.Source == "/dev/mqueue":
		return specs.Mount{Destination: dest, Type: "mqueue", Source: "mqueue", Options: withoutBind(m.Options)}, true
	case dest == "/dev/shm":
		size, ok := tmpfs(m.Source)
		if !ok {
			return m, false
		}
		options := append(withoutBind(m.Options), "mode=1777")
		if m.Source != "/dev/shm" && size > 0 {
			options = append(options, fmt.Sprintf("size=%d", size))
		}
		return specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: options}, true
	}
	return m, false
}

// withoutBind returns the options of a bind mount that other mounts have too.
func withoutBind(options []string) []string {
	var out []string
	for _, o := range options {
		switch o {
		case "bind", "rbind":
		default:
			out = append(out, o)
		}
	}
	return out
}

// Tmpfs tells whether dir is a tmpfs, and its size in bytes. It is what
// Input.Tmpfs is outside tests.
func Tmpfs(dir string) (int64, bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil || int64(st.Type) != tmpfsMagic { //nolint:unconvert // the types differ between systems
		return 0, false
	}
	return int64(st.Blocks) * int64(st.Bsize), true //nolint:unconvert // likewise
}
