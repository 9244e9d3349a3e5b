//go:build cgo

// Applevm-agent is PID 1 of an applevm machine: it readies the machine, dials
// the host and serves it (package guest/agent). Re-executed with the argument
// "init" it is a container's first process.
//
// It is built as one static binary with the tags seccomp, netgo, osusergo and
// runc_nocriu.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/mdlayher/vsock"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/agent"
	"github.com/applevm/applevm/guest/api"
)

// version is set by the linker.
var version = "dev"

// dialTimeout is how long the host may take to accept the control connection. It
// listens before it starts the machine.
const dialTimeout = 5 * time.Second

// shutdownTimeout bounds the end of what still runs when the host is gone.
const shutdownTimeout = 20 * time.Second

// runDir is the agent's directory. It is short because overlayfs takes all
// paths of its layers in one page.
const runDir = "/run/vm"

func main() {
	// The host takes this line as the end of the kernel's boot: nothing before it.
	_, _ = unix.Write(unix.Stdout, []byte(api.ReadyLine+" "+version+"\n"))
	started := uptime()
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, api.ReadyLine+": this is the init of applevm's machines and does nothing elsewhere")
		os.Exit(2)
	}
	if err := run(started); err != nil {
		// With a newline before it: the kernel's messages may have left half a line.
		fmt.Fprintf(os.Stderr, "\n%s: the machine cannot go on: %v\n", api.ReadyLine, err)
	}
	powerOff()
}

// run readies the machine and serves the host until that hangs up.
func run(started time.Duration) error {
	logrus.SetOutput(os.Stderr)
	logrus.SetFormatter(agent.LogFormat{})
	logrus.SetLevel(logrus.WarnLevel)
	if err := boot(); err != nil {
		return err
	}
	ctx := context.Background()
	forwarded, err := vsock.Listen(api.ForwardPort, nil)
	if err != nil {
		return fmt.Errorf("listen for connections to the machine's ports: %w", err)
	}
	conn, err := dialControl(ctx)
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Options{
		Dir:        runDir,
		DialStream: func(ctx context.Context) (net.Conn, error) { return dial(ctx, api.StreamPort) },
		DialSocket: func(ctx context.Context) (net.Conn, error) { return dial(ctx, api.SocketPort) },
		FindDisk:   agent.SysfsDisks,
		SetClock:   setClock,
		ShiftClock: shiftClock,
		Started:    started,
		Ready:      uptime(),
	})
	if err != nil {
		return err
	}
	go a.ServeForward(forwarded)
	err = a.Serve(ctx, conn)
	// The host has gone or wants the machine to end; what the containers have
	// written is to survive either way.
	ctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	if serr := a.Shutdown(ctx, 0); err == nil {
		err = serr
	}
	return err
}

// dialControl connects to the host. The host listens before it starts the
// machine, but the vsock device may need a moment.
func dialControl(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for {
		conn, err := dial(ctx, api.ControlPort)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to the host: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := vsock.DialContext(ctx, vsock.Host, port, nil)
	if err != nil {
		return nil, err // not c: a nil *Conn is no nil net.Conn
	}
	return c, nil
}

// uptime is the time since the kernel's start.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
