package machine

import "golang.org/x/sys/unix"

// HostMemory is the host's whole memory in bytes, 0 if it cannot be found.
func HostMemory() int64 {
	n, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0
	}
	return int64(n)
}
