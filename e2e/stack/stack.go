// Package stack runs what applevm works with: an unmodified containerd with the
// applevm shim and snapshotter, in a temporary directory of its own, as root or as
// an ordinary user without capabilities. The demo, the end-to-end tests and the
// bench share it. Whatever becomes of the process that started a stack, nothing
// of it stays behind.
package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/applevm/applevm/snapshotter/view"
)

// Nobody is the user and group that stand for an ordinary user.
const Nobody = 65534

// Namespace is the containerd namespace in which the stack's clients work.
const Namespace = "default"

// startTimeout bounds the start of each daemon.
const startTimeout = 30 * time.Second

// Options say what stack to start.
type Options struct {
	// Unprivileged runs everything as Nobody, without capabilities and without
	// a way to gain any, if the caller is root. It has no effect if it is not.
	Unprivileged bool
	// Bare also takes from /dev what macOS has nothing like, if the caller is root on Linux:
	// loop devices, net/tun, FUSE and all others but BareDevices.
	Bare bool
	// Env is added to the daemons' environment, and so to the shims'.
	Env []string
	// Config is added to applevm's configuration file (TOML).
	Config string
	// Unpacks is how many layers of an image containerd unpacks at a time; 0 is 1,
	// as by containerd's default.
	Unpacks int
	// NetNS is the path of a network namespace in which everything runs; empty is
	// the caller's. It needs root.
	NetNS string
	// Path is a directory in which the daemons look for programs first.
	Path string
	// Erofs has containerd unpack with its erofs differ, which needs a mkfs.erofs that
	// reads tar (see Path), and makes writable layers of its erofs snapshotter image
	// files.
	Erofs bool
	// GuestDir is the guest image; empty is build/guest/ARCH of the checkout.
	GuestDir string
}

// Stack is a running containerd with applevm.
type Stack struct {
	// Dir holds all files of the stack.
	Dir string
	// Unprivileged tells whether the stack runs as Nobody.
	Unprivileged bool

	isBare   bool
	counts   counts
	netns    string   // or empty
	cni      string   // the directory of CNI plugins
	env      []string // of the daemons, besides the stack's own
	daemons  []*daemon
	watchdog *watchdog
}

// Start makes a stack and returns once it serves. The caller must Close it.
func Start(ctx context.Context, opts Options) (_ *Stack, retErr error) {
	root, err := Checkout()
	if err != nil {
		return nil, err
	}
	// Short: unix socket paths hold 104 bytes on macOS, and the shim's are long.
	dir, err := os.MkdirTemp("/tmp", "avm")
	if err != nil {
		return nil, err
	}
	s := &Stack{Dir: dir, Unprivileged: opts.Unprivileged && os.Getuid() == 0, netns: opts.NetNS,
		isBare: opts.Bare && os.Getuid() == 0 && runtime.GOOS == "linux", cni: filepath.Join(root, "bin", "cni")}
	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("%w\n%s", retErr, s.Logs())
			_ = s.Close()
		}
	}()
	if s.watchdog, err = startWatchdog(dir); err != nil {
		return nil, err
	}
	if opts.GuestDir == "" {
		opts.GuestDir = filepath.Join(root, "build", "guest", runtime.GOARCH)
	}
	if err := s.install(root, opts); err != nil {
		return nil, err
	}
	snapshotter := s.command(ctx, "applevm-snapshotter")
	snapshotter.Env = append(snapshotter.Env, opts.Env...)
	if err := s.daemon(ctx, "snapshotter", snapshotter, serves(s.path("sn.sock"))); err != nil {
		return nil, err
	}
	if runtime.GOOS == "linux" && os.Getuid() == 0 && !s.Unprivileged {
		err := s.daemon(ctx, "view", s.command(ctx, "applevm-snapshotter", "view"), func() error {
			if !view.IsMounted(s.path("snapshots")) {
				return errors.New("it is not mounted")
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	s.env = opts.Env
	if opts.Path != "" {
		s.env = append(slices.Clone(s.env), "PATH="+opts.Path+":"+s.searchPath())
	}
	if err := s.StartContainerd(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// StartContainerd starts containerd again after KillContainerd.
func (s *Stack) StartContainerd(ctx context.Context) error {
	containerd := s.command(ctx, "containerd", "--config", s.path("containerd.toml"))
	containerd.Env = append(containerd.Env, s.env...)
	return s.daemon(ctx, "containerd", containerd, serves(s.path("c.sock")))
}

// KillContainerd ends containerd as a crash does: by SIGKILL, with all that runs left
// as it is.
func (s *Stack) KillContainerd() {
	s.daemons = slices.DeleteFunc(s.daemons, func(d *daemon) bool {
		if d.name != "containerd" {
			return false
		}
		_ = d.cmd.Process.Kill()
		<-d.done
		return true
	})
}

// Containerd is containerd's process, 0 if it does not run.
func (s *Stack) Containerd() int {
	for _, d := range s.daemons {
		if d.name == "containerd" {
			return d.cmd.Process.Pid
		}
	}
	return 0
}

// Checkout returns the root of the source tree that holds the working directory.
func Checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("run this inside the applevm checkout")
}

func (s *Stack) path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir}, elem...)...)
}

// install puts binaries, guest image and configuration into the stack's
// directory: the checkout may be where an ordinary user cannot read.
func (s *Stack) install(root string, opts Options) error {
	for _, d := range []string{"bin", "guest", "root", "state", "s", "fifo", "tmp", "home", "cache", "nerdctl", "cni", "cdi", "dev"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	programs := []string{"containerd", "ctr", "nerdctl", "containerd-shim-applevm-v1", "applevm-snapshotter"}
	if runtime.GOOS == "linux" {
		programs = append(programs, "containerd-shim-runc-v2")
	}
	for _, b := range programs {
		from := filepath.Join(root, "bin", b)
		if shim := os.Getenv("APPLEVM_TEST_SHIM"); shim != "" && b == "containerd-shim-applevm-v1" {
			from = shim // one that was built otherwise
		}
		if err := place(from, s.path("bin", b)); err != nil {
			return fmt.Errorf("%w: run make build tools", err)
		}
	}
	files, err := filepath.Glob(filepath.Join(opts.GuestDir, "*"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no guest image in %s: run make guest", opts.GuestDir)
	}
	for _, f := range files {
		if err := place(f, s.path("guest", filepath.Base(f))); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"containerd.toml": s.containerdConfig(opts),
		"applevm.toml":    s.applevmConfig(opts.Config),
		"nerdctl.toml":    s.nerdctlConfig(),
		"bare.sh":         bareScript,
	} {
		if err := os.WriteFile(s.path(name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if !s.Unprivileged {
		return nil
	}
	return filepath.WalkDir(s.Dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, Nobody, Nobody)
	})
}

// place copies a file. A hard link would do for root, but chown must not reach
// the checkout's own files.
func place(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// command prepares a program of the stack's bin directory, with the stack's
// user and environment.
func (s *Stack) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	argv := append([]string{s.path("bin", name)}, args...)
	if s.Unprivileged {
		id := strconv.Itoa(Nobody)
		argv = append([]string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups",
			"--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"}, argv...)
	}
	if s.isBare {
		argv = s.bare(argv)
	}
	if s.netns != "" {
		argv = append([]string{"nsenter", "--net=" + s.netns}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = s.Dir
	cmd.Env = []string{
		"PATH=" + s.searchPath(),
		"HOME=" + s.path("home"),
		"TMPDIR=" + s.path("tmp"),
		"XDG_CACHE_HOME=" + s.path("cache"),
		"XDG_RUNTIME_DIR=" + s.path("tmp"),
		"APPLEVM_CONFIG=" + s.path("applevm.toml"),
		"CONTAINERD_ADDRESS=" + s.path("c.sock"),
		"CONTAINERD_NAMESPACE=" + Namespace,
		"NERDCTL_TOML=" + s.path("nerdctl.toml"),
		"TERM=dumb",
		// The host's cgroup version is no matter of ours.
		"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1",
	}
	return cmd
}

func (s *Stack) searchPath() string {
	return s.path("bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// Ctr prepares a ctr command, as the stack's user.
func (s *Stack) Ctr(ctx context.Context, args ...string) *exec.Cmd {
	s.counts.add("ctr", args)
	return s.command(ctx, "ctr", args...)
}

// CtrRun prepares `ctr run` with applevm's runtime and snapshotter. args begin
// with further flags, then the image, the container's id and its command.
func (s *Stack) CtrRun(ctx context.Context, args ...string) *exec.Cmd {
	return s.Ctr(ctx, append([]string{"run", "--runtime", "io.containerd.applevm.v1",
		"--snapshotter", "applevm", "--fifo-dir", s.path("fifo")}, args...)...)
}

// CtrExec prepares `ctr task exec` in a running container.
func (s *Stack) CtrExec(ctx context.Context, args ...string) *exec.Cmd {
	return s.Ctr(ctx, append([]string{"task", "exec", "--fifo-dir", s.path("fifo")}, args...)...)
}

// Nerdctl prepares a nerdctl command; it needs a stack that is not Unprivileged.
func (s *Stack) Nerdctl(ctx context.Context, args ...string) *exec.Cmd {
	s.counts.add("nerdctl", args)
	return s.command(ctx, "nerdctl", args...)
}

// NerdctlRun prepares `nerdctl run` with applevm's runtime.
func (s *Stack) NerdctlRun(ctx context.Context, args ...string) *exec.Cmd {
	return s.Nerdctl(ctx, append([]string{"run", "--runtime", "io.containerd.applevm.v1", "--net", "none"}, args...)...)
}

// Import loads an OCI archive and unpacks it with applevm-snapshotter.
func (s *Stack) Import(ctx context.Context, archive string, args ...string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	// From standard input, so that the stack's user need not be able to open it.
	cmd := s.Ctr(ctx, append(append([]string{"image", "import", "--snapshotter", "applevm"}, args...), "-")...)
	cmd.Stdin = f
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("import %s: %w: %s", archive, err, bytes.TrimSpace(out))
	}
	return nil
}

// Close ends everything and removes the stack's directory. It reports what
// should have ended by itself.
func (s *Stack) Close() error {
	var errs []error
	for i := len(s.daemons) - 1; i >= 0; i-- {
		if err := s.daemons[i].stop(); err != nil {
			errs = append(errs, err)
		}
	}
	s.daemons = nil
	for _, p := range s.processes() {
		errs = append(errs, fmt.Errorf("left running: %s", p))
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	if s.watchdog != nil {
		s.watchdog.dismiss()
	}
	for _, m := range s.mounts() {
		errs = append(errs, fmt.Errorf("left mounted: %s", m))
		_ = unmount(m)
	}
	// Killed processes may take a moment to let go of their files.
	var err error
	for range 50 {
		if err = os.RemoveAll(s.Dir); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.Join(append(errs, err)...)
}

// Logs returns the daemons' logs, for a failure's report.
func (s *Stack) Logs() string {
	var b bytes.Buffer
	for _, name := range []string{"snapshotter", "view", "containerd"} {
		text, err := os.ReadFile(s.path(name + ".log"))
		if err != nil {
			continue
		}
		const most = 16 << 10
		fmt.Fprintf(&b, "--- %s.log\n%s\n", name, text[max(0, len(text)-most):])
	}
	return b.String()
}

// daemon is a process that must serve for as long as the stack lives.
type daemon struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
}

// serves tells whether somebody listens on a unix socket.
func serves(socket string) func() error {
	return func() error {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// daemon starts a daemon and returns once ready says that it serves.
func (s *Stack) daemon(ctx context.Context, name string, cmd *exec.Cmd, ready func() error) error {
	log, err := os.OpenFile(s.path(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not CommandContext's way: a daemon ends by Close, not with the context of its start.
	c := exec.Command(cmd.Path, cmd.Args[1:]...)
	c.Dir, c.Env = cmd.Dir, cmd.Env
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	d := &daemon{name: name, cmd: c, done: make(chan struct{})}
	go func() { _ = c.Wait(); close(d.done) }()
	s.daemons = append(s.daemons, d)

	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("%s ended at its start: %s", name, c.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("%s does not serve: %w", name, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (d *daemon) stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
		return nil
	case <-time.After(15 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
		return fmt.Errorf("%s did not end on SIGTERM", d.name)
	}
}
