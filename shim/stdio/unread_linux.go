package stdio

import (
	"os"

	"golang.org/x/sys/unix"
)

// readersHearEnd says that who waits for a FIFO's bytes is woken when its last
// writer goes.
const readersHearEnd = true

// unread returns how many bytes of what was written to a FIFO or pipe its readers
// have not read yet; 0 if there is no reader, or it is neither.
func (o *output) unread() int {
	if o.keepOn {
		return 0 // a file: all there is has been done
	}
	raw, err := o.SyscallConn()
	if err != nil {
		return 0
	}
	var n int
	err = raw.Control(func(fd uintptr) {
		// POLLERR: nobody has the other end (poll(2)).
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if _, err := unix.Poll(p, 0); err != nil || p[0].Revents&unix.POLLERR != 0 {
			return
		}
		// TIOCINQ is FIONREAD (ioctl_tty(2)), which pipes have too.
		if got, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			n = got
		}
	})
	if err != nil {
		return 0 // closed
	}
	return n
}

// pending returns how many bytes the reading end of a pipe has.
func pending(r *os.File) int {
	raw, err := r.SyscallConn()
	if err != nil {
		return 0
	}
	var n int
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}
