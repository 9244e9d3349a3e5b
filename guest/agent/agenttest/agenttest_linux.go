// Package agenttest is the host's side for tests of the agent: disks made with
// mke2fs, clients of both services, processes with their streams. It does not
// care what carries the connections: the agent may be in this process or in a machine.
package agenttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/guest/stream"
)

// Prefix starts the IDs of all containers, and so the names of their cgroups.
const Prefix = "agent-test-"

// Host is the other side of an agent.
type Host struct {
	T   *testing.T
	Dir string // for disk images and what else the test makes

	// Forking, if set, is called before a program is started and what it returns
	// after its end: an agent in the same process reaps children that are nobody's.
	Forking func() (end func())

	// Clients, once Connect was called.
	Task  taskapi.TTRPCTaskService
	Guest guestv1.GuestService

	mu      sync.Mutex
	images  map[string]Image
	streams map[stream.Token]chan net.Conn
}

// Image is a disk.
type Image struct {
	Serial, Path string
	ReadOnly     bool
}

// New returns a host that is not connected yet. dir exists.
func New(t *testing.T, dir string) *Host {
	return &Host{T: t, Dir: dir, images: make(map[string]Image), streams: make(map[stream.Token]chan net.Conn)}
}

// Connect takes the agent's control connection.
func (h *Host) Connect(conn net.Conn) {
	client := ttrpc.NewClient(conn)
	h.Task, h.Guest = taskapi.NewTTRPCTaskClient(client), guestv1.NewGuestClient(client)
}

// TakeStream takes a connection that the agent has made for a stream.
func (h *Host) TakeStream(conn net.Conn) {
	var token stream.Token
	_, err := io.ReadFull(conn, token[:])
	h.mu.Lock()
	ch := h.streams[token]
	h.mu.Unlock()
	if err != nil || ch == nil {
		_ = conn.Close()
		return
	}
	ch <- conn
}

// Image returns the disk with the given serial number.
func (h *Host) Image(serial string) (Image, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	img, ok := h.images[serial]
	return img, ok
}

// Images returns all disks made so far.
func (h *Host) Images() []Image {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []Image
	for _, img := range h.images {
		all = append(all, img)
	}
	return all
}

// expect names a new stream.
func (h *Host) expect() (string, chan net.Conn) {
	token, ch := stream.NewToken(), make(chan net.Conn, 1)
	h.mu.Lock()
	h.streams[token] = ch
	h.mu.Unlock()
	return token.String(), ch
}

// Layer makes a read-only disk whose tree, in the directory "root", is what fill makes.
func (h *Host) Layer(serial string, fill func(dir string)) *guestv1.Tree {
	h.T.Helper()
	src := filepath.Join(h.Dir, "src-"+serial)
	root := filepath.Join(src, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		h.T.Fatal(err)
	}
	fill(root)
	h.mkfs(serial, src, "64M", true)
	_ = os.RemoveAll(src)
	return &guestv1.Tree{Disk: serial, FsType: "ext4", Directory: "root"}
}

// Writable makes an empty disk.
func (h *Host) Writable(serial string) *guestv1.Tree {
	h.T.Helper()
	h.mkfs(serial, "", "64M", false)
	return &guestv1.Tree{Disk: serial, FsType: "ext4"}
}

// Run runs a program and returns what it prints; it must succeed.
func (h *Host) Run(name string, args ...string) string {
	h.T.Helper()
	if h.Forking != nil {
		defer h.Forking()()
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		h.T.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (h *Host) mkfs(serial, src, size string, readOnly bool) {
	h.T.Helper()
	img := filepath.Join(h.Dir, serial+".img")
	args := []string{"-q", "-F", "-t", "ext4", "-m", "0"}
	if readOnly {
		args = append(args, "-O", "^has_journal", "-d", src)
	}
	h.Run("mke2fs", append(args, img, size)...)
	h.mu.Lock()
	h.images[serial] = Image{serial, img, readOnly}
	h.mu.Unlock()
}

// Busybox returns what fills a directory with a small system.
func Busybox(t *testing.T) func(dir string) {
	return func(dir string) {
		t.Helper()
		for _, d := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile("/bin/busybox")
		if err != nil {
			t.Fatalf("%v: install busybox-static (make deps)", err)
		}
		write(t, dir, "bin/busybox", string(b), 0o755)
		for _, l := range []string{"sh", "cat", "echo", "id", "sleep", "true", "false", "stty", "head", "test", "ls", "tty", "dd", "wc", "hostname", "env", "pwd", "kill", "mount", "touch", "grep", "date", "uname", "mkdir", "mknod", "cut", "rm", "ifconfig", "ping"} {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", l)); err != nil {
				t.Fatal(err)
			}
		}
		write(t, dir, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/:/bin/sh\n", 0o644)
		write(t, dir, "etc/group", "root:x:0:\napp:x:1001:\nextra:x:2000:app\n", 0o644)
		write(t, dir, "etc/notexec", "x", 0o644)
		write(t, dir, "bin/foreign", foreignELF(), 0o755)
		write(t, dir, "bin/foreign-script", "#!/bin/foreign -x\necho no\n", 0o755)
	}
}

func write(t *testing.T, dir, name, content string, mode os.FileMode) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// foreignELF is the start of a program for an architecture that is not ours.
func foreignELF() string {
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	h[16], h[18] = 2, 243 // ET_EXEC, EM_RISCV
	return string(h)
}

// Run is one process and what the host has of it.
type Run struct {
	h          *Host
	ID, ExecID string

	// In writes to stdin, once it was started with one.
	In             *stream.Writer
	Stdout, Stderr *Output
	inCh           chan net.Conn
	// Names of the streams, as they go into the request.
	InName, OutName, ErrName string
}

// Output collects a stream.
type Output struct {
	conn net.Conn
	mu   sync.Mutex
	buf  bytes.Buffer
	// Done is closed when the stream has ended.
	Done chan struct{}
	// Marked is closed when all that the process wrote is in the output.
	Marked   chan struct{}
	markOnce sync.Once
	err      error
}

func newOutput() *Output {
	return &Output{Done: make(chan struct{}), Marked: make(chan struct{})}
}

func (o *Output) collect(ch chan net.Conn) {
	defer close(o.Done)
	o.conn = <-ch
	defer o.conn.Close()
	r := stream.NewReader(o.conn)
	r.OnMark = func() { o.markOnce.Do(func() { close(o.Marked) }) }
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		o.mu.Lock()
		o.buf.Write(buf[:n])
		o.mu.Unlock()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				o.err = err
			}
			return
		}
	}
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// WaitFor returns when the output contains s.
func (o *Output) WaitFor(t *testing.T, s string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(o.String(), s); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the output has no %q: %q", s, o.String())
		}
	}
}

func (h *Host) NewRun(id, execID string, terminal, stdin bool) *Run {
	r := &Run{h: h, ID: id, ExecID: execID}
	var ch chan net.Conn
	r.OutName, ch = h.expect()
	r.Stdout = newOutput()
	go r.Stdout.collect(ch)
	if !terminal {
		r.ErrName, ch = h.expect()
		r.Stderr = newOutput()
		go r.Stderr.collect(ch)
	}
	if stdin {
		r.InName, r.inCh = h.expect()
	}
	return r
}

func (r *Run) openStdin() {
	if r.inCh != nil {
		r.In = stream.NewWriter(<-r.inCh)
	}
}

// Config is one container to be.
type Config struct {
	ID       string // without Prefix
	Args     []string
	Terminal bool
	Stdin    bool
	Spec     func(*specs.Spec)               // changes the default one
	Options  func(*guestv1.ContainerOptions) // changes the default ones
}

func Spec(args []string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID"}
	return &specs.Spec{
		Version:  specs.Version,
		Hostname: "box",
		Root:     &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin:/usr/bin", "A=b"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/default/whatever",
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
			},
			MaskedPaths: []string{"/proc/kcore"},
		},
		Hooks: &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/no/such/hook"}}},
	}
}

func Context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Create makes a container with the given root file system.
func (h *Host) Create(c Config, fs *guestv1.Rootfs) (*Run, error) {
	h.T.Helper()
	c.ID = Prefix + c.ID
	r := h.NewRun(c.ID, "", c.Terminal, c.Stdin)
	spec := Spec(c.Args)
	spec.Process.Terminal = c.Terminal
	if c.Spec != nil {
		c.Spec(spec)
	}
	b, err := json.Marshal(spec)
	if err != nil {
		h.T.Fatal(err)
	}
	opts := &guestv1.ContainerOptions{Spec: b, Rootfs: fs}
	if c.Options != nil {
		c.Options(opts)
	}
	a, err := anypb.New(opts)
	if err != nil {
		h.T.Fatal(err)
	}
	_, err = h.Task.Create(Context(h.T), &taskapi.CreateTaskRequest{
		ID: c.ID, Terminal: c.Terminal, Stdin: r.InName, Stdout: r.OutName, Stderr: r.ErrName, Options: a,
	})
	return r, err
}

// Start makes a container and starts it.
func (h *Host) Start(c Config, fs *guestv1.Rootfs) *Run {
	h.T.Helper()
	r, err := h.Create(c, fs)
	if err != nil {
		h.T.Fatalf("create %v: %v", c.Args, err)
	}
	r.MustStart()
	return r
}

func (r *Run) MustStart() {
	r.h.T.Helper()
	if _, err := r.h.Task.Start(Context(r.h.T), &taskapi.StartRequest{ID: r.ID, ExecID: r.ExecID}); err != nil {
		r.h.T.Fatalf("start: %v", err)
	}
	r.openStdin()
}

// Exec books an additional process.
func (r *Run) Exec(id string, terminal, stdin bool, change func(*specs.Process), args ...string) (*Run, error) {
	x := r.h.NewRun(r.ID, id, terminal, stdin)
	p := Spec(args).Process
	p.Terminal = terminal
	if change != nil {
		change(p)
	}
	return x, x.ExecSpec(p)
}

func (r *Run) ExecSpec(p *specs.Process) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	_, err = r.h.Task.Exec(Context(r.h.T), &taskapi.ExecProcessRequest{
		ID: r.ID, ExecID: r.ExecID, Terminal: p.Terminal, Stdin: r.InName, Stdout: r.OutName, Stderr: r.ErrName,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: b},
	})
	return err
}

func (r *Run) MustExec(id string, args ...string) *Run {
	r.h.T.Helper()
	x, err := r.Exec(id, false, false, nil, args...)
	if err != nil {
		r.h.T.Fatalf("exec %v: %v", args, err)
	}
	x.MustStart()
	return x
}

// Wait returns the exit code, without waiting for the output.
func (r *Run) Wait() uint32 {
	r.h.T.Helper()
	w, err := r.h.Task.Wait(Context(r.h.T), &taskapi.WaitRequest{ID: r.ID, ExecID: r.ExecID})
	if err != nil {
		r.h.T.Fatalf("wait: %v", err)
	}
	return w.ExitStatus
}

// Finish waits for the exit and all output.
func (r *Run) Finish() uint32 {
	r.h.T.Helper()
	code := r.Wait()
	for _, o := range []*Output{r.Stdout, r.Stderr} {
		if o == nil {
			continue
		}
		select {
		case <-o.Done:
		case <-time.After(20 * time.Second):
			r.h.T.Fatalf("a stream does not end; it has %q", o.String())
		}
		if o.err != nil {
			r.h.T.Fatalf("stream: %v", o.err)
		}
	}
	return code
}

func (r *Run) Delete() error {
	_, err := r.h.Task.Delete(Context(r.h.T), &taskapi.DeleteRequest{ID: r.ID, ExecID: r.ExecID})
	return err
}

func (r *Run) MustDelete() {
	r.h.T.Helper()
	if err := r.Delete(); err != nil {
		r.h.T.Fatalf("delete: %v", err)
	}
}

func (r *Run) Kill(sig unix.Signal, all bool) error {
	_, err := r.h.Task.Kill(Context(r.h.T), &taskapi.KillRequest{ID: r.ID, ExecID: r.ExecID, Signal: uint32(sig), All: all})
	return err
}

// Box starts a container that stays until it is killed.
func (h *Host) Box(fs *guestv1.Rootfs) *Run {
	h.T.Helper()
	return h.Start(Config{ID: "box", Args: []string{"sleep", "1000"}}, fs)
}

// System returns a root file system with busybox and a writable disk.
func (h *Host) System() *guestv1.Rootfs {
	h.T.Helper()
	return &guestv1.Rootfs{Lower: []*guestv1.Tree{h.Layer("base", Busybox(h.T))}, Writable: h.Writable("rw")}
}

// Unread names a stream that nobody reads until the test does.
func (h *Host) Unread() (string, chan net.Conn) { return h.expect() }

// AddImage adds a disk that the test has made itself.
func (h *Host) AddImage(img Image) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.images[img.Serial] = img
}
