package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/agent/taskpb"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// container is one container of the machine.
type container struct {
	id     string
	agent  *Agent
	dir    string // its directory for mount points and files
	lowers string // its directory of links to lower trees
	init   *process

	rootfs *rootfs
	oom    oomCount
	lc     *libcontainer.Container
	// sharedPID is true if the container has no PID namespace of its own, so
	// that its processes do not end with the first one.
	sharedPID bool
	// privileged containers are not confined (see privileged).
	privileged bool
	// ids is the mapping of its user namespace, if it has one.
	ids *idmap

	updateMu  sync.Mutex            // one update at a time
	resources *specs.LinuxResources // in force

	pauseMu  sync.Mutex    // one pause or resume at a time
	freezers []*freezer    // of the disks that it may write to: that of its changes, and those that the spec mounts
	syncer   *freezer      // of the directories that the host shares; nil if there are none
	disks    []string      // IDs of those that the spec mounts
	shares   []share       // that the spec mounts
	sharesMu sync.RWMutex  // of shares once the container is made: who writes unmounts them
	appeared chan struct{} // there are new files in one
	watches  *pathWatches  // of the shares
	leases   []*dhcp       // of its network interfaces
	volumes  []volume      // that may be new
	sockets  *sockets      // of the host; nil if there are none
	files    files         // that were made for it

	translator *guestv1.Translator // what the host said of it
	daemon     *daemon             // that keeps its translations; nil if there is none

	mu        sync.Mutex
	execs     map[string]*process
	deleted   bool // delete has begun
	destroyed bool // lc.Destroy was successful
}

// killTimeout is how long a killed process may take to be gone. The kernel may
// need a while for one that waits for a disk.
const killTimeout = 10 * time.Second

// create makes a container and its first process, which waits for its start.
func (a *Agent) create(ctx context.Context, req *taskpb.CreateTaskRequest) (_ *container, err error) {
	if err := validID(req.GetId()); err != nil {
		return nil, invalid("%w", err)
	}
	if req.GetCheckpoint() != "" {
		return nil, notImplemented("Restore from a checkpoint")
	}
	var opts guestv1.ContainerOptions
	if err := req.GetOptions().UnmarshalTo(&opts); err != nil {
		return nil, invalid("container options: %w", err)
	}
	spec, warnings, err := parseSpec(opts.GetSpec(), req.GetId())
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		logrus.Warnf("container %s: %s", req.GetId(), w)
	}
	c, err := a.reserve(req.GetId())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if rerr := c.release(); rerr != nil {
				logrus.Errorf("container %s: clean up after a failed create: %v", c.id, rerr)
			}
			a.forget(c.id)
		}
	}()
	if t := opts.GetClockUnixNanos(); t != 0 {
		if err := a.opts.SetClock(time.Unix(0, t)); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		return nil, err
	}

	// The streams connect while the disks are mounted.
	names := stdioNames{req.GetTerminal(), req.GetStdin(), req.GetStdout(), req.GetStderr()}
	type opened struct {
		s   *stdio
		err error
	}
	streams := make(chan opened, 1)
	go func() {
		s, err := openStdio(ctx, a.opts.DialStream, names)
		streams <- opened{s, err}
	}()
	config, err := c.prepare(ctx, spec, &opts)
	io := <-streams
	if err != nil || io.err != nil {
		if io.s != nil {
			io.s.abort()
		}
		if err == nil {
			err = io.err
		}
		return nil, err
	}
	init := newProcess(c, "", spec.Process, names)
	if c.lc, err = libcontainer.Create(filepath.Join(a.opts.Dir, runcDir), c.id, config); err != nil {
		io.s.abort()
		return nil, err
	}
	c.sharedPID = !config.Namespaces.IsPrivate(configs.NEWPID)
	if err := init.launch(c.lc, io.s, true); err != nil {
		return nil, err
	}
	c.watchMemory()
	a.publish(c, init)
	return c, nil
}

// prepare mounts the root file system and completes the spec from what is in it.
func (c *container) prepare(ctx context.Context, spec *specs.Spec, opts *guestv1.ContainerOptions) (*configs.Config, error) {
	var err error
	if c.ids, err = userMapping(spec); err != nil {
		return nil, err
	}
	fs, err := mountRootfs(ctx, c.agent.disks, opts.GetRootfs(), c.lowers, filepath.Join(c.dir, "rootfs"), c.ids, c.agent.reaper.starting)
	if err != nil {
		return nil, err
	}
	c.rootfs = fs
	if fs.changes != "" {
		c.freezers = append(c.freezers, newFreezer(fs.changes))
	}
	if err := c.mountDisks(ctx, spec); err != nil {
		return nil, err
	}
	if err := c.mountShares(spec); err != nil {
		return nil, err
	}
	if err := c.mountSockets(spec); err != nil {
		return nil, err
	}
	spec.Root.Path = fs.path
	for _, v := range c.volumes {
		if err := v.fill(fs.path); err != nil {
			return nil, err
		}
	}
	writable := fs.changes != "" || fs.shared && !opts.GetRootfs().GetShare().GetReadOnly()
	files := possibleFiles(opts.GetFiles(), fs.path, writable)
	if c.files.paths, err = addFiles(spec, files, filepath.Join(c.dir, "files"), c.ids); err != nil {
		return nil, err
	}
	if err := resolveUser(&spec.Process.User, fs.path); err != nil {
		return nil, err
	}
	if err := c.agent.setTranslator(opts.GetTranslator()); err != nil {
		return nil, err
	}
	c.translator = opts.GetTranslator()
	foreign, err := c.checkArch(spec.Process)
	if err != nil {
		return nil, err
	}
	if foreign {
		if err := c.keepTranslations(spec, c.translator.GetSocket()); err != nil {
			return nil, err
		}
	}
	if err := completeDevices(spec); err != nil {
		return nil, err
	}
	if privileged(spec) {
		c.privileged = true
		completeCapabilities(spec.Process)
	}
	if err := setMachineNames(spec); err != nil {
		return nil, err
	}
	sysctls := machineSysctls(spec)
	disks, err := fs.devices()
	if err != nil {
		return nil, err
	}
	throttleDisks(spec.Linux.Resources, disks)
	c.resources = spec.Linux.Resources
	config, err := libcontainerConfig(spec, c.id)
	if err != nil {
		return nil, invalid("%w", err)
	}
	config.ExecCPUAffinity = machineCPUs(config.ExecCPUAffinity)
	// Interfaces have kernel parameters of their own, so they come first.
	if err := c.setNetwork(ctx, config, opts.GetInterfaces()); err != nil {
		return nil, err
	}
	if err := setSysctls(sysctlRoot, sysctls); err != nil {
		return nil, err
	}
	return config, nil
}

// process returns the container's first process if id is empty, else an exec.
func (c *container) process(id string) (*process, error) {
	if id == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.execs[id]
	if !ok {
		return nil, fmt.Errorf("process %q of container %q: %w", id, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

// addExec books an additional process; start starts it.
func (c *container) addExec(req *taskpb.ExecProcessRequest) error {
	if err := validID(req.GetExecId()); err != nil {
		return invalid("%w", err)
	}
	spec, warnings, err := parseProcess(req.GetSpec())
	if err != nil {
		return err
	}
	for _, w := range warnings {
		logrus.Warnf("container %s, process %s: %s", c.id, req.GetExecId(), w)
	}
	if c.privileged {
		completeCapabilities(spec)
	}
	spec.Terminal = req.GetTerminal()
	names := stdioNames{req.GetTerminal(), req.GetStdin(), req.GetStdout(), req.GetStderr()}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted || c.init.hasExited() {
		return fmt.Errorf("cannot exec in a stopped container: %w", errdefs.ErrFailedPrecondition)
	}
	if c.isPaused() {
		return errPaused
	}
	if _, ok := c.execs[req.GetExecId()]; ok {
		return fmt.Errorf("process %q of container %q: %w", req.GetExecId(), c.id, errdefs.ErrAlreadyExists)
	}
	if len(c.execs) >= maxExecs {
		return fmt.Errorf("container %q has %d processes that were not deleted: %w", c.id, len(c.execs), errdefs.ErrFailedPrecondition)
	}
	c.execs[req.GetExecId()] = newProcess(c, req.GetExecId(), spec, names)
	return nil
}

// maxExecs bounds what a client that never deletes can take.
const maxExecs = 4096

// start lets the first process run its program, or starts an exec.
func (c *container) start(ctx context.Context, p *process) error {
	p.startMu.Lock()
	defer p.startMu.Unlock()
	p.mu.Lock()
	status := p.status
	p.mu.Unlock()
	if status != taskpb.Status_CREATED {
		return fmt.Errorf("cannot start a process that is %s: %w", statusText(status), errdefs.ErrFailedPrecondition)
	}
	if p.id == "" {
		return c.startInit(p)
	}
	if c.init.hasExited() {
		p.setExited(startFailed)
		return fmt.Errorf("cannot exec in a stopped container: %w", errdefs.ErrFailedPrecondition)
	}
	if err := c.startExec(ctx, p); err != nil {
		p.setExited(startFailed)
		return err
	}
	return nil
}

// startFailed is the exit code of a process that could not be started.
const startFailed = 255

func (c *container) startInit(p *process) error {
	if err := c.whileRunning(c.lc.Exec); err != nil {
		// libcontainer leaves a thread behind that waits for the dead process to
		// open its FIFO: open it in its place.
		fifo := filepath.Join(c.agent.opts.Dir, runcDir, c.id, "exec.fifo")
		if fd, ferr := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); ferr == nil {
			_ = unix.Close(fd)
		}
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == taskpb.Status_CREATED { // it may have exited already
		p.status = taskpb.Status_RUNNING
	}
	return nil
}

// startExec opens the streams before all else, so that they end, for a host that
// waits for that, whatever fails.
func (c *container) startExec(ctx context.Context, p *process) error {
	s, err := openStdio(ctx, c.agent.opts.DialStream, p.names)
	if err != nil {
		return err
	}
	if err := resolveUser(&p.spec.User, c.rootfs.path); err != nil {
		s.abort()
		return err
	}
	if _, err := c.checkArch(p.spec); err != nil {
		s.abort()
		return err
	}
	err = c.whileRunning(func() error { return p.launch(c.lc, s, false) })
	if errors.Is(err, errPaused) {
		s.abort()
	}
	return err
}

// killRest ends what is left of the container after its first process: nothing
// if that was the first one of its PID namespace, as the kernel does it then.
func (c *container) killRest() {
	if !c.sharedPID {
		return
	}
	if err := c.killCgroup(); err != nil {
		logrus.Errorf("container %s: kill the processes that its first one left: %v", c.id, err)
		return
	}
	deadline := time.After(killTimeout)
	for _, p := range c.allExecs() {
		p.mu.Lock()
		running := p.status == taskpb.Status_RUNNING
		p.mu.Unlock()
		if !running {
			continue
		}
		select {
		case <-p.exited:
		case <-deadline:
			return
		}
	}
}

// killCgroup kills all the container's processes (cgroup.kill, Linux 5.14).
func (c *container) killCgroup() error {
	c.thawForEnd()
	err := os.WriteFile(c.cgroupFile("cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (c *container) allExecs() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		all = append(all, p)
	}
	return all
}

// kill sends a signal to the first process, or to all.
func (c *container) kill(sig unix.Signal, all bool) error {
	if !all {
		return c.init.kill(sig)
	}
	if c.init.hasExited() {
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	if sig == unix.SIGKILL {
		return c.killCgroup()
	}
	pids, err := c.lc.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("send signal %d to process %d: %w", sig, pid, err)
		}
	}
	return nil
}

// delete removes an exec, or the whole container, which must have exited.
func (c *container) delete(p *process) error {
	p.mu.Lock()
	status := p.status
	p.mu.Unlock()
	if p.id != "" {
		if status == taskpb.Status_RUNNING || !p.startMu.TryLock() {
			return fmt.Errorf("process %q of container %q is running: %w", p.id, c.id, errdefs.ErrFailedPrecondition)
		}
		defer p.startMu.Unlock()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.execs, p.id)
		return nil
	}
	if status != taskpb.Status_STOPPED {
		return fmt.Errorf("container %q is %s: %w", c.id, statusText(status), errdefs.ErrFailedPrecondition)
	}
	if err := c.release(); err != nil {
		return err
	}
	c.agent.forget(c.id)
	return nil
}

// release removes the container's cgroup, mounts and files. It may be repeated
// after a failure.
func (c *container) release() error {
	if err := c.thaw(endThawTimeout); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deleted = true
	if c.lc != nil && !c.destroyed {
		if err := c.lc.Destroy(); err != nil {
			return err
		}
		c.destroyed = true
	}
	c.sockets.close()
	c.daemon.stop()
	c.watches.close()
	for _, d := range c.leases {
		d.close()
	}
	c.leases = nil
	// What is still mounted must not be removed: it is the host's.
	if err := errors.Join(c.unmountShares(), c.unmountDisks()); err != nil {
		return err
	}
	if c.rootfs != nil {
		if err := c.rootfs.unmount(); err != nil {
			return err
		}
	}
	return os.RemoveAll(c.dir)
}

// status is the container's, as the task API has it.
func (c *container) status() taskpb.Status {
	c.init.mu.Lock()
	s := c.init.status
	c.init.mu.Unlock()
	if s != taskpb.Status_RUNNING {
		return s
	}
	if c.isPaused() {
		return taskpb.Status_PAUSED
	}
	return s
}

func statusText(s taskpb.Status) string {
	switch s {
	case taskpb.Status_CREATED:
		return "created"
	case taskpb.Status_RUNNING:
		return "running"
	case taskpb.Status_PAUSED:
		return "paused"
	default:
		return "stopped"
	}
}

// finished turns "no such process" into the answer that containerd's clients expect.
func finished(err error) error {
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	return err
}

// running returns libcontainer's handle of a container that has not exited.
func (c *container) running() (*libcontainer.Container, error) {
	if c.init.hasExited() {
		return nil, fmt.Errorf("container %q is stopped: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	return c.lc, nil
}
