// Package hostcheck looks at a host and says whether containers can run on it
// with a given configuration: guest image, VMM, directories and sockets, the
// snapshotter's daemon, containerd and what it knows of applevm.
//
// It changes nothing on the host. What only a container's start can show, that
// a guest boots under KVM for instance, is not its business.
package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/applevm/applevm/config"
)

// Level says how bad a finding is.
type Level int

const (
	// OK is what it should be.
	OK Level = iota
	// Warn is worth knowing, but containers run.
	Warn
	// Fail keeps containers from running.
	Fail
)

// String returns "ok", "warn" or "FAIL".
func (l Level) String() string {
	switch l {
	case OK:
		return "ok"
	case Warn:
		return "warn"
	}
	return "FAIL"
}

// Finding is what one probe found.
type Finding struct {
	Level Level
	// What says what was looked at and what was found. It may hold text of
	// other programs.
	What string
	// Remedy says what to do; it is empty for OK.
	Remedy string
}

func ok(format string, args ...any) Finding { return Finding{What: fmt.Sprintf(format, args...)} }

func warn(remedy, format string, args ...any) Finding {
	return Finding{Warn, fmt.Sprintf(format, args...), remedy}
}

func fail(remedy, format string, args ...any) Finding {
	return Finding{Fail, fmt.Sprintf(format, args...), remedy}
}

// DefaultTimeout bounds each probe unless Options say otherwise. containerd
// starts the shim for one of them, which takes a moment on a busy host.
const DefaultTimeout = 10 * time.Second

// grace is what a probe whose time is up has to say so itself, and better.
const grace = 500 * time.Millisecond

// Options change how a host is checked.
type Options struct {
	// Timeout bounds each probe; zero is DefaultTimeout.
	Timeout time.Duration
}

// host is the host that is checked.
type host struct {
	cfg config.Config
	sys system
	// containerd is a connection that is made when it is first used.
	containerd *grpc.ClientConn
	// answers tells whether containerd has answered.
	answers atomic.Bool
}

// probe is one look at the host.
type probe struct {
	name string
	run  func(ctx context.Context) []Finding
}

// Run checks the host and calls report for each finding, as soon as it is
// known. It returns an error only if ctx ends.
func Run(ctx context.Context, cfg config.Config, opts Options, report func(Finding)) error {
	return run(ctx, cfg, thisSystem(), opts.Timeout, report)
}

func run(ctx context.Context, cfg config.Config, sys system, timeout time.Duration, report func(Finding)) error {
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	conn, err := dialGRPC(cfg.Snapshotter.ContainerdAddress)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	h := &host{cfg: cfg, sys: sys, containerd: conn}
	for _, p := range []probe{
		{"guest image", h.checkGuest},
		{"virtual machine monitor", h.checkVMM},
		{"directories", h.checkDirectories},
		{"owners", h.checkOwners},
		{"socket paths", h.checkSocketPaths},
		{"snapshotter daemon", h.checkDaemon},
		{"containerd", h.checkContainerd},
		{"containerd's plugins", h.checkPlugins},
		{"shim", h.checkShim},
		{"view", h.checkView},
	} {
		for _, f := range p.within(ctx, timeout) {
			report(f)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("check of the host: %w", err)
		}
	}
	return nil
}

// within runs a probe with a deadline. One that does not come back, because it
// looks at a dead file server for instance, is left alone.
func (p probe) within(ctx context.Context, timeout time.Duration) []Finding {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	found := make(chan []Finding, 1)
	go func() { found <- p.run(ctx) }()
	late := time.NewTimer(timeout + grace)
	defer late.Stop()
	select {
	case f := <-found:
		return f
	case <-late.C:
		return []Finding{fail("see what keeps it: a file server or a device that hangs", "%s: no answer within %v", p.name, timeout)}
	}
}

// reason is err's text in a finding: the operating system's word on it if there
// is one, as the finding names the file itself.
func reason(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
