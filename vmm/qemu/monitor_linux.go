package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// monitor is the way to QEMU's QMP server: a listening socket that we make and
// QEMU inherits. So it costs the start nothing, and is there from the beginning.
type monitor struct {
	path string
	dir  *os.File
	busy chan struct{} // QMP serves one client at a time
}

const monitorName = "qmp.sock"

// newMonitor listens in dir and returns what QEMU inherits.
func newMonitor(dir string) (m *monitor, listener *os.File, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("monitor: %w", err)
	}
	m = &monitor{path: filepath.Join(dir, monitorName), dir: d, busy: make(chan struct{}, 1)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.shortPath(), Net: "unix"})
	if err != nil {
		_ = d.Close()
		return nil, nil, fmt.Errorf("monitor: %w", err)
	}
	defer func() { _ = l.Close() }()
	l.SetUnlinkOnClose(false)
	if listener, err = l.File(); err != nil {
		_ = m.close()
		return nil, nil, fmt.Errorf("monitor: %w", err)
	}
	return m, listener, nil
}

// shortPath names the socket so that any directory fits into a socket address.
func (m *monitor) shortPath() string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(m.dir.Fd())), monitorName)
}

func (m *monitor) close() error {
	_ = m.dir.Close()
	return os.Remove(m.path)
}

// run executes one QMP command without arguments and waits for its answer.
func (m *monitor) run(ctx context.Context, command string) error {
	select {
	case m.busy <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	result := make(chan error, 1)
	// The client knows no deadline. If QEMU does not answer, the goroutine ends
	// with QEMU.
	go func() {
		defer func() { <-m.busy }()
		result <- m.runNow(command)
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *monitor) runNow(command string) error {
	mon, err := qmp.NewSocketMonitor("unix", m.shortPath(), 2*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = mon.Disconnect() }()
	if err := mon.Connect(); err != nil {
		return err
	}
	request, err := json.Marshal(qmp.Command{Execute: command})
	if err != nil {
		return err
	}
	_, err = mon.Run(request)
	return err
}

// socketPair returns two connected stream sockets: ours and QEMU's.
func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "vhost-user")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "vhost-user")
	c, err := net.FileConn(f)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}
