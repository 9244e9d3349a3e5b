package task_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/shim/plan"
)

// TestCreateRefusesClearly checks errors that need no machine. None may be
// Unimplemented: containerd would fall back to another protocol on it, hide the
// text, and leave the shim running.
func TestCreateRefusesClearly(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*box, *taskapi.CreateTaskRequest)
		spec   func(*specs.Spec)
		want   string
	}{
		{name: "missing kernel", change: func(c *box, _ *taskapi.CreateTaskRequest) {
			old := c.cfg.Guest.Dir
			c.cfg.Guest.Dir = filepath.Join(c.dir, "guest")
			if err := os.CopyFS(c.cfg.Guest.Dir, os.DirFS(old)); err != nil {
				c.t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(c.cfg.Guest.Dir, "kernel")); err != nil {
				c.t.Fatal(err)
			}
		}, want: "lacks its kernel: build it anew"},
		{name: "no guest image", change: func(c *box, _ *taskapi.CreateTaskRequest) { c.cfg.Guest.Dir = c.dir }, want: "no guest image in"},
		{name: "another snapshotter", change: func(_ *box, r *taskapi.CreateTaskRequest) {
			r.Rootfs = []*types.Mount{{Type: "tmpfs", Source: "tmpfs"}}
		}, want: `mount type "tmpfs" is not implemented: use the applevm snapshotter`},
		{name: "too much memory", spec: func(s *specs.Spec) {
			s.Annotations = map[string]string{plan.AnnotationMemory: "512TiB"}
		}, want: "not enough memory on the host: machine test/c is to have 512TiB"},
		{name: "network", spec: func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/netns/x"}}
		}, want: "open the network namespace: open /run/netns/x"},
		{name: "checkpoint", change: func(_ *box, r *taskapi.CreateTaskRequest) { r.Checkpoint = "/x" }, want: "Create from a checkpoint is not implemented"},
		{name: "missing stdout", change: func(c *box, r *taskapi.CreateTaskRequest) { r.Stdout = filepath.Join(c.dir, "none") }, want: "open stdout"},
		{name: "failing hook", spec: func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}}
		}, want: "createRuntime hook /bin/false"},
		{name: "no call within the boot timeout", change: func(c *box, _ *taskapi.CreateTaskRequest) {
			c.cfg.Machine.BootTimeout = config.Duration(50 * time.Millisecond)
		}, want: "boot of machine test/c failed: the guest did not report within 50ms"},
		{name: "driver", change: func(c *box, _ *taskapi.CreateTaskRequest) { c.cfg.Machine.Driver = "vz" }, want: `machine.driver "vz" is not implemented on linux`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			var change []func(*specs.Spec)
			if tc.spec != nil {
				change = append(change, tc.spec)
			}
			c := b.container("c", []string{"program", "true"}, change...)
			r := c.request()
			if tc.change != nil {
				tc.change(c, r)
			}
			_, err := c.client.Create(c.ctx(), r)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if status.Code(err) == codes.Unimplemented {
				t.Error("Create answers Unimplemented")
			}
		})
	}
}

func TestUnknownContainer(t *testing.T) {
	b := newBench(t)
	c := &box{bench: b}
	for name, call := range map[string]func() error{
		"start":  func() error { _, err := b.client.Start(c.ctx(), &taskapi.StartRequest{ID: "x"}); return err },
		"state":  func() error { _, err := b.client.State(c.ctx(), &taskapi.StateRequest{ID: "x"}); return err },
		"wait":   func() error { _, err := b.client.Wait(c.ctx(), &taskapi.WaitRequest{ID: "x"}); return err },
		"kill":   func() error { _, err := b.client.Kill(c.ctx(), &taskapi.KillRequest{ID: "x"}); return err },
		"delete": func() error { _, err := b.client.Delete(c.ctx(), &taskapi.DeleteRequest{ID: "x"}); return err },
		"exec":   func() error { _, err := b.client.Exec(c.ctx(), &taskapi.ExecProcessRequest{ID: "x"}); return err },
		"pids":   func() error { _, err := b.client.Pids(c.ctx(), &taskapi.PidsRequest{ID: "x"}); return err },
	} {
		if err := call(); status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestShutdownEndsAnEmptyShim(t *testing.T) {
	b := newBench(t)
	if _, err := b.client.Shutdown((&box{bench: b}).ctx(), &taskapi.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	<-b.sd.Done()
	if err := b.sd.Err(); !errors.Is(err, shutdown.ErrShutdown) {
		t.Errorf("shutdown: %v", err)
	}
}
