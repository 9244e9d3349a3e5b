package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/agent/agenttest"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// host is the other side of an agent in this process.
type host struct {
	*agenttest.Host
	agent  *Agent
	conn   net.Conn
	ended  chan error
	loops  []*os.File
	clock  time.Time
	shifts []string
}

// newHost starts an agent. At the test's end nothing of it may be left.
func newHost(t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "t")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{Host: agenttest.New(t, dir), ended: make(chan error, 1)}
	h.agent, err = New(Options{
		Dir: filepath.Join(dir, "a"), DialStream: h.acceptStream, FindDisk: h.attach,
		SetClock: func(now time.Time) error { h.clock = now; return nil },
		ShiftClock: func(d time.Duration, slew bool) error {
			h.shifts = append(h.shifts, fmt.Sprint(d, slew))
			return nil
		},
		Started: 1, Ready: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Forking = h.agent.reaper.starting
	ours, theirs := socketPair(t)
	h.conn = ours
	go func() { h.ended <- h.agent.Serve(context.Background(), theirs) }()
	h.Connect(ours)
	t.Cleanup(h.close)
	return h
}

func (h *host) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := h.Guest.Shutdown(ctx, &guestv1.ShutdownRequest{}); err != nil {
		h.T.Errorf("shutdown: %v", err)
	}
	_ = h.conn.Close()
	if err := <-h.ended; err != nil {
		h.T.Errorf("Serve: %v", err)
	}
	h.agent.Close()
	if left := mountsBelow(h.T, h.Dir); len(left) > 0 {
		h.T.Errorf("mounts left behind: %q", left)
	}
	for _, d := range []string{diskDir, lowerDir, containerDir, runcDir} {
		if left, _ := filepath.Glob(filepath.Join(h.Dir, "a", d, "*")); len(left) > 0 {
			h.T.Errorf("files left behind: %q", left)
		}
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/" + agenttest.Prefix + "*"); len(left) > 0 {
		h.T.Errorf("cgroups left behind: %q", left)
	}
	for _, f := range h.loops {
		_ = f.Close()
	}
	_ = os.RemoveAll(h.Dir)
}

// attach makes a loop device of the disk's image: what a virtio disk is in a machine.
func (h *host) attach(ctx context.Context, serial string) (string, error) {
	img, ok := h.Image(serial)
	if !ok {
		<-ctx.Done()
		return "", fmt.Errorf("disk %q is not attached to the machine", serial)
	}
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if img.ReadOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	back, err := os.OpenFile(img.Path, mode, 0)
	if err != nil {
		return "", err
	}
	defer back.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer ctl.Close()
	for {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", err
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
		if err != nil {
			return "", err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
			Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: flags},
		})
		if errors.Is(err, unix.EBUSY) { // somebody else was faster
			_ = loop.Close()
			continue
		}
		if err != nil {
			_ = loop.Close()
			return "", err
		}
		h.loops = append(h.loops, loop) // closed after the unmount, which then clears it
		return loop.Name(), nil
	}
}

// acceptStream is the host's StreamPort.
func (h *host) acceptStream(context.Context) (net.Conn, error) {
	ours, theirs := socketPair(h.T)
	go h.TakeStream(ours)
	return theirs, nil
}

func socketPair(t *testing.T) (a, b net.Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Error(err)
		}
	}
	return conns[0], conns[1]
}
