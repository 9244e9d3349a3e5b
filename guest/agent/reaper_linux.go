package agent

import (
	"encoding/binary"
	"os"
	"os/signal"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper collects the exit of processes whose parent died, which fall to PID 1.
//
// libcontainer waits for its own children by pid, so that nothing here may wait
// for any child at all. The reaper looks (WNOWAIT) at which child has exited,
// and takes it only if it belongs to nobody: not to a process in owned, and not
// possibly to a start in progress, whose helper processes nobody knows by pid.
type reaper struct {
	mu    sync.Mutex
	seq   uint64
	busy  map[uint64]struct{} // starts in progress, by the seq at which they began
	owned map[int]struct{}
	seen  map[int]uint64 // exited children left alone so far, by seq

	quit, done chan struct{}
}

// recheck is how long the reaper waits before it looks again at an exited child
// that it had to leave alone. Any value works: it only bounds how long a zombie stays.
const recheck = 100 * time.Millisecond

func newReaper() *reaper {
	r := &reaper{busy: make(map[uint64]struct{}), owned: make(map[int]struct{}), seen: make(map[int]uint64),
		quit: make(chan struct{}), done: make(chan struct{})}
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGCHLD)
	go func() {
		defer close(r.done)
		defer signal.Stop(sig)
		t := time.NewTimer(0)
		defer t.Stop()
		for {
			select {
			case <-r.quit:
				return
			case <-sig:
			case <-t.C:
			}
			if r.sweep() {
				t.Reset(recheck)
			}
		}
	}()
	return r
}

// stop ends the reaper.
func (r *reaper) stop() {
	close(r.quit)
	<-r.done
}

// starting must be called before libcontainer forks; end must be called after
// the pid of the new process, if any, was given to own.
func (r *reaper) starting() (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	n := r.seq
	r.busy[n] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.busy, n)
	}
}

// own says that someone else waits for pid; disown, that he has.
func (r *reaper) own(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owned[pid] = struct{}{}
}

func (r *reaper) disown(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.owned, pid)
}

// sweep reaps what it may and tells whether it must look again.
func (r *reaper) sweep() (again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	for {
		pid := exitedChild()
		if pid <= 0 {
			clear(r.seen)
			return false
		}
		if !r.mayReap(pid) {
			return true
		}
		delete(r.seen, pid)
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil && err != unix.EINTR {
			return true
		}
	}
}

func (r *reaper) mayReap(pid int) bool {
	if _, ok := r.owned[pid]; ok {
		return false
	}
	first, ok := r.seen[pid]
	if !ok {
		first = r.seq
		r.seen[pid] = first
	}
	for n := range r.busy {
		if n < first {
			return false // it may be a helper of this start
		}
	}
	return true
}

// exitedChild returns the pid of a child that can be waited for, 0 if none.
func exitedChild() int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0
		}
		break
	}
	// si_pid follows si_signo, si_errno, si_code and, on 64-bit machines, four
	// bytes of padding (asm-generic/siginfo.h).
	const pidOffset = 16
	b := unsafe.Slice((*byte)(unsafe.Pointer(&info)), unsafe.Sizeof(info))
	return int(int32(binary.NativeEndian.Uint32(b[pidOffset:])))
}
