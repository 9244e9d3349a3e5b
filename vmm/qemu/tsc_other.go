//go:build !amd64

package qemu

// measureTSC returns 0: only x86 has a time stamp counter.
func measureTSC() int { return 0 }
