package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	_ "github.com/opencontainers/cgroups/devices" // containers' device rules

	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// Options is what an Agent needs from the machine it runs in.
type Options struct {
	// Dir is a directory on a tmpfs for the agent's mount points and state,
	// made if it does not exist. Keep it short: overlayfs takes all paths of
	// its layers in one page.
	Dir string
	// DialStream connects to the host's api.StreamPort.
	DialStream func(ctx context.Context) (net.Conn, error)
	// DialSocket connects to the host's api.SocketPort.
	DialSocket func(ctx context.Context) (net.Conn, error)
	// FindDisk returns the block device whose serial number is given, waiting
	// for it to appear as long as ctx allows. SysfsDisks is the real one.
	FindDisk func(ctx context.Context, serial string) (string, error)
	// SetClock sets the machine's wall clock.
	SetClock func(time.Time) error
	// ShiftClock puts it forward, at once or at a rate of 500 ppm.
	ShiftClock func(d time.Duration, slew bool) error
	// Started and Ready are the times since the kernel's start at which the
	// agent ran its first instruction and had its control connection.
	Started, Ready time.Duration
}

// Agent runs a machine's containers.
type Agent struct {
	opts   Options
	disks  *disks
	reaper *reaper
	oom    outOfMemory

	translatorMu sync.Mutex // of translator
	translator   translator

	mu         sync.Mutex
	containers map[string]*container
	stopping   bool
	overlays   int
}

// New returns an Agent and starts to reap orphaned processes, which become
// children of the calling process if it is PID 1 of its PID namespace. A process
// has one Agent at a time; Close ends it.
func New(opts Options) (*Agent, error) {
	// Not listable, but to be passed through by the root of a user namespace, who
	// is nobody in particular here.
	for _, d := range []string{diskDir, lowerDir, containerDir, runcDir} {
		if err := os.MkdirAll(filepath.Join(opts.Dir, d), 0o711); err != nil {
			return nil, err
		}
	}
	return &Agent{
		opts:       opts,
		disks:      newDisks(filepath.Join(opts.Dir, diskDir), opts.FindDisk),
		reaper:     newReaper(),
		oom:        outOfMemory{changed: make(chan struct{})},
		containers: make(map[string]*container),
	}, nil
}

// Close stops the reaping of orphans. Containers are left as they are.
func (a *Agent) Close() { a.reaper.stop() }

// Directories in Options.Dir.
const (
	diskDir      = "d" // one mount point a disk
	lowerDir     = "l" // one directory of links a container
	containerDir = "c" // root and files of each container
	runcDir      = "r" // libcontainer's state
)

// Serve serves the control connection. It returns when the connection has
// ended, whoever ended it; containers are left as they are.
func (a *Agent) Serve(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(intercept))
	if err != nil {
		return err
	}
	(&taskService{a}).register(srv)
	guestv1.RegisterGuestService(srv, &guestService{a})
	guestv1.RegisterFilesService(srv, newFilesService(a))
	l := newOneListener(conn)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	err = srv.Serve(ctx, l)
	_ = srv.Close()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, ttrpc.ErrServerClosed) {
		return nil
	}
	return err
}

// container returns the container id, or an error for the client.
func (a *Agent) container(id string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, ok := a.containers[id]
	if !ok || c.init == nil {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// process returns a container's process: the first one if execID is empty.
func (a *Agent) process(id, execID string) (*process, error) {
	c, err := a.container(id)
	if err != nil {
		return nil, err
	}
	return c.process(execID)
}

// reserve books id for a container that is about to be made.
func (a *Agent) reserve(id string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopping {
		return nil, fmt.Errorf("container %q: the machine is shutting down: %w", id, errdefs.ErrUnavailable)
	}
	if _, ok := a.containers[id]; ok {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrAlreadyExists)
	}
	a.overlays++
	c := &container{
		id:     id,
		agent:  a,
		dir:    filepath.Join(a.opts.Dir, containerDir, id),
		lowers: filepath.Join(a.opts.Dir, lowerDir, fmt.Sprint(a.overlays)),
		execs:  make(map[string]*process),
		// One is enough to look.
		appeared: make(chan struct{}, 1),
		watches:  newPathWatches(),
	}
	a.containers[id] = c
	return c, nil
}

// publish makes a container that reserve has booked visible to other calls.
func (a *Agent) publish(c *container, init *process) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.init = init
}

func (a *Agent) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.containers, id)
}

// oneListener hands out one connection and ends when that connection does.
type oneListener struct {
	conn net.Conn
	next chan net.Conn
	once sync.Once
	done chan struct{}
}

func newOneListener(conn net.Conn) *oneListener {
	l := &oneListener{conn: conn, next: make(chan net.Conn, 1), done: make(chan struct{})}
	l.next <- &noticedConn{Conn: conn, l: l}
	return l
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.next:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.conn.Close()
}

func (l *oneListener) Addr() net.Addr { return l.conn.LocalAddr() }

// noticedConn tells its listener when the server gives it up.
type noticedConn struct {
	net.Conn
	l *oneListener
}

func (c *noticedConn) Close() error { return c.l.Close() }
