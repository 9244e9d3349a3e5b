package task_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/shim/machine"
	"github.com/applevm/applevm/shim/task"
	"github.com/applevm/applevm/shim/trace"
)

// bench is a task service as containerd has it: over ttrpc on a unix socket,
// with bundles and snapshots as containerd and applevm-snapshotter make them.
type bench struct {
	t      *testing.T
	dir    string
	client taskapi.TTRPCTaskService
	sd     shutdown.Service
	events *recorder
	cfg    config.Config
}

const namespace = "test"

// newBench starts a service; change may alter its options.
func newBench(t *testing.T, change ...func(*task.Options)) *bench {
	t.Helper()
	// Sockets need a short path, shorter than t.TempDir's.
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir, events: &recorder{}, cfg: config.Default()}
	b.cfg.Guest.Dir = guestDir(t)
	b.cfg.Machine.MemoryMiB = 256
	ctx, sd := shutdown.WithShutdown(context.Background())
	b.sd = sd
	opts := task.Options{
		Namespace: namespace,
		Config:    func() (config.Config, error) { return b.cfg, nil },
		Driver:    machine.NewDriver,
		Publisher: b.events,
		Shutdown:  sd,
		TraceFile: os.Getenv(trace.Env),
	}
	for _, f := range change {
		f(&opts)
	}
	svc := task.New(ctx, opts)
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.RegisterTTRPC(srv); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "task.sock"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(context.Background(), l) }()
	conn, err := net.Dial("unix", filepath.Join(dir, "task.sock"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	b.client = taskapi.NewTTRPCTaskClient(client)
	t.Cleanup(func() {
		sd.Shutdown()
		select {
		case <-sd.Done():
		case <-time.After(time.Minute):
			t.Error("the service does not end")
		}
		_ = client.Close()
		_ = srv.Close()
		left, _ := filepath.Glob(filepath.Join(dir, "s", "*"))
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		os.RemoveAll(dir)
	})
	return b
}

// guestDir is the guest image that `make guest` builds.
func guestDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../build/guest/" + runtime.GOARCH)
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "image.json"))
	}
	if err != nil {
		t.Fatalf("no guest image (run `make guest`): %v", err)
	}
	return dir
}

// program builds testdata/program once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./testdata/program")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// layer is an image with the program and the directories that a container needs.
func (b *bench) layer() string {
	b.t.Helper()
	bin, err := program()
	if err != nil {
		b.t.Fatal(err)
	}
	tree := filepath.Join(b.dir, "tree")
	root := filepath.Join(tree, manifest.LayerRoot)
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		b.t.Fatal(err)
	}
	writeFile(b.t, filepath.Join(root, "bin/program"), data, 0o755)
	writeFile(b.t, filepath.Join(root, "bin/data"), []byte("not a program"), 0o644)
	writeFile(b.t, filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644)
	img := filepath.Join(b.dir, "layer.img")
	mke2fs(b.t, img, "32M", "-O", "^has_journal", "-d", tree)
	return img
}

func mke2fs(t *testing.T, img, size string, args ...string) {
	t.Helper()
	args = append([]string{"-q", "-t", "ext4"}, append(args, img, size)...)
	cmd := exec.Command("mke2fs", args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/sbin:/usr/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
}

func writeFile(t *testing.T, path string, b []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, b, mode); err != nil {
		t.Fatal(err)
	}
}

// box is one container of a bench.
type box struct {
	*bench
	id     string
	bundle string
	rootfs []*types.Mount
	out    string // the file that takes its output
}

// container makes a bundle and a snapshot for a container that runs args.
func (b *bench) container(id string, args []string, change ...func(*specs.Spec)) *box {
	b.t.Helper()
	c := &box{bench: b, id: id, bundle: filepath.Join(b.dir, "b", id)}
	snap := filepath.Join(b.dir, "n", id)
	for _, d := range []string{c.bundle, filepath.Join(snap, manifest.FacadeDir), filepath.Join(b.dir, "s")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(b.dir, "s"), filepath.Join(c.bundle, "s")); err != nil {
		b.t.Fatal(err)
	}
	rw := filepath.Join(snap, "rw.img")
	mke2fs(b.t, rw, "64M")
	if err := manifest.Write(snap, manifest.Manifest{
		Layers:   []manifest.Layer{{DiffID: "sha256:0", Path: b.layer(), FSType: "ext4"}},
		Writable: &manifest.Writable{Path: rw, FSType: "ext4"},
	}); err != nil {
		b.t.Fatal(err)
	}
	c.rootfs = []*types.Mount{{Type: "bind", Source: filepath.Join(snap, manifest.FacadeDir), Options: []string{"rbind", "rw"}}}
	spec := defaultSpec(args)
	for _, f := range change {
		f(spec)
	}
	j, err := json.Marshal(spec)
	if err != nil {
		b.t.Fatal(err)
	}
	writeFile(b.t, filepath.Join(c.bundle, "config.json"), j, 0o600)
	c.out = filepath.Join(c.bundle, "out")
	return c
}

// defaultSpec is a small spec of the kind that containerd's clients make.
func defaultSpec(args []string) *specs.Spec {
	caps := []string{"CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE"}
	return &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: "box",
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/test/box",
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
		},
	}
}

func (c *box) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	c.t.Cleanup(cancel)
	return ctx
}

// request is the Create that containerd would send, with output to a file.
func (c *box) request() *taskapi.CreateTaskRequest {
	return &taskapi.CreateTaskRequest{
		ID: c.id, Bundle: c.bundle, Rootfs: c.rootfs, Stdout: "file://" + c.out, Stderr: "file://" + c.out,
	}
}

func (c *box) create() {
	c.t.Helper()
	if _, err := c.client.Create(c.ctx(), c.request()); err != nil {
		c.t.Fatalf("create: %v", err)
	}
}

func (c *box) start() {
	c.t.Helper()
	if _, err := c.client.Start(c.ctx(), &taskapi.StartRequest{ID: c.id}); err != nil {
		c.t.Fatalf("start: %v", err)
	}
}

func (c *box) wait(execID string) uint32 {
	c.t.Helper()
	resp, err := c.client.Wait(c.ctx(), &taskapi.WaitRequest{ID: c.id, ExecID: execID})
	if err != nil {
		c.t.Fatalf("wait: %v", err)
	}
	return resp.ExitStatus
}

func (c *box) kill(signal uint32) {
	c.t.Helper()
	if _, err := c.client.Kill(c.ctx(), &taskapi.KillRequest{ID: c.id, Signal: signal}); err != nil {
		c.t.Fatalf("kill: %v", err)
	}
}

func (c *box) delete() *taskapi.DeleteResponse {
	c.t.Helper()
	resp, err := c.client.Delete(c.ctx(), &taskapi.DeleteRequest{ID: c.id})
	if err != nil {
		c.t.Fatalf("delete: %v", err)
	}
	return resp
}

// exec adds a process with output to the file that it returns, and starts it.
func (c *box) exec(execID string, args ...string) string {
	c.t.Helper()
	out, err := c.tryExec(execID, args...)
	if err != nil {
		c.t.Fatalf("exec %v: %v", args, err)
	}
	return out
}

func (c *box) tryExec(execID string, args ...string) (string, error) {
	c.t.Helper()
	out, err := c.addExec(execID, args...)
	if err != nil {
		return "", err
	}
	_, err = c.client.Start(c.ctx(), &taskapi.StartRequest{ID: c.id, ExecID: execID})
	return out, err
}

// addExec adds a process that is not started. Its stdin is the FIFO EXECID.in in the
// bundle, if there is one.
func (c *box) addExec(execID string, args ...string) (string, error) {
	c.t.Helper()
	j, err := json.Marshal(specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}})
	if err != nil {
		c.t.Fatal(err)
	}
	out := filepath.Join(c.bundle, execID+".out")
	in := filepath.Join(c.bundle, execID+".in")
	if _, err := os.Stat(in); err != nil {
		in = ""
	}
	_, err = c.client.Exec(c.ctx(), &taskapi.ExecProcessRequest{
		ID: c.id, ExecID: execID, Stdin: in, Stdout: "file://" + out, Stderr: "file://" + out,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: j},
	})
	return out, err
}

func (c *box) output() string {
	c.t.Helper()
	b, err := os.ReadFile(c.out)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// recorder is a publisher that keeps what it gets.
type recorder struct {
	mu   sync.Mutex
	list []events.Event
}

func (r *recorder) Forward(_ context.Context, env *types.Envelope) error {
	e, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, e)
	return nil
}

func (r *recorder) Close() error { return nil }

// names returns the events in short form: create, start, exit 0, exec-added e…
func (r *recorder) names() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var s []string
	for _, e := range r.list {
		switch e := e.(type) {
		case *apievents.TaskCreate:
			s = append(s, "create")
		case *apievents.TaskStart:
			s = append(s, "start")
		case *apievents.TaskExecAdded:
			s = append(s, "added "+e.ExecID)
		case *apievents.TaskExecStarted:
			s = append(s, "started "+e.ExecID)
		case *apievents.TaskExit:
			s = append(s, fmt.Sprintf("exit %s %d", e.ID, e.ExitStatus))
		case *apievents.TaskDelete:
			s = append(s, fmt.Sprintf("delete %d", e.ExitStatus))
		default:
			s = append(s, fmt.Sprintf("%T", e))
		}
	}
	return strings.Join(s, ", ")
}
