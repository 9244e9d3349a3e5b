package qemu

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
)

const (
	// turnLimit is how long a boot waits for its turn at the most; then it does without.
	turnLimit = 5 * time.Minute
	// turnInterval is how often it looks.
	turnInterval = 50 * time.Millisecond
)

// takeTurn waits until fewer guests boot on this host than it has processors, and
// keeps the turn until the guest has connected with the host or its machine has ended. Guests that are emulated gain
// nothing by booting at the same time: they would only take the processors from each
// other. And Linux measures its timer against its clock while it boots, for a tenth of a
// second; a guest that gets no processor for that long is left with a timer that
// is wrong, or without one, and waits for ever.
//
// The turns are locks on files in the cache directory, so they are those of one user,
// and a process that dies gives its own up.
func (m *machine) takeTurn(ctx context.Context) error {
	if m.drv.cache.open() != nil {
		return nil // without a place to meet there are no turns
	}
	for end := time.Now().Add(turnLimit); time.Now().Before(end); {
		for i := range runtime.NumCPU() {
			f, err := os.OpenFile(filepath.Join(m.drv.cache.dir, "boot-"+strconv.Itoa(i)+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
			if err != nil {
				return nil
			}
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
				m.mu.Lock()
				m.turn = f
				m.mu.Unlock()
				return nil
			}
			_ = f.Close()
		}
		m.mu.Lock()
		asked := m.asked
		m.mu.Unlock()
		if asked {
			return vmm.ErrNotRunning
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(turnInterval):
		}
	}
	return nil
}

// endTurn lets the next guest boot.
func (m *machine) endTurn() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.turn != nil {
		_ = m.turn.Close()
		m.turn = nil
	}
}

// firstCall is a listener that knows by the guest's first call that it has booted.
type firstCall struct {
	net.Listener
	m *machine
}

func (l *firstCall) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.m.endTurn()
	}
	return c, err
}
