package task_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestLife takes one container through its life: hooks, files, execs, their
// outputs and exit statuses, signals, events in order, and nothing left behind.
func TestLife(t *testing.T) {
	b := newBench(t)
	hosts := filepath.Join(b.dir, "hosts")
	writeFile(t, hosts, nil, 0o644)
	hook := func(script string) specs.Hook {
		return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin"}}
	}
	gone := filepath.Join(b.dir, "poststop")
	c := b.container("c", []string{"program", "sleep"}, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: hosts, Options: []string{"rbind", "rw"}})
		s.Hooks = &specs.Hooks{
			CreateRuntime: []specs.Hook{hook("echo 127.0.0.1 by-hook >" + hosts)},
			Poststop:      []specs.Hook{hook("cat >" + gone)},
		}
	})
	c.create()
	st, err := c.client.State(c.ctx(), &taskapi.StateRequest{ID: c.id})
	if err != nil || st.Status != tasktypes.Status_CREATED || st.Pid == 0 {
		t.Fatalf("state %v, %v", st, err)
	}
	if err := syscall.Kill(int(st.Pid), 0); err != nil {
		t.Errorf("pid %d is no process: %v", st.Pid, err)
	}
	c.start()
	eventually(t, "the program says that it is ready", func() bool { return c.output() == "ready\n" })

	if out := c.exec("hosts", "program", "cat", "/etc/hosts"); c.wait("hosts") != 0 || read(t, c, "hosts", out) != "127.0.0.1 by-hook\n" {
		t.Errorf("hosts: %q", read(t, c, "hosts", out))
	}
	c.exec("seven", "program", "exit", "7")
	if got := c.wait("seven"); got != 7 {
		t.Errorf("exit status %d, want 7", got)
	}
	out := c.exec("flood", "program", "flood", "3000000")
	if got := c.wait("flood"); got != 0 {
		t.Errorf("flood: exit status %d", got)
	}
	if got := len(read(t, c, "flood", out)); got != 3000000 {
		t.Errorf("%d bytes of output, want 3000000", got)
	}

	// A client that has piped something into an exec and is gone, without CloseIO.
	fifo := filepath.Join(c.bundle, "piped.in")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	out = c.exec("piped", "program", "cat", "/dev/stdin")
	writeFile(t, fifo, []byte("to the end\n"), 0)
	if got := c.wait("piped"); got != 0 || read(t, c, "piped", out) != "to the end\n" {
		t.Errorf("piped: exit status %d, %q", got, read(t, c, "piped", out))
	}

	_, err = c.tryExec("nosuch", "nosuch")
	if err == nil || !strings.Contains(err.Error(), `OCI runtime exec failed: exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`) {
		t.Errorf("exec of a command that does not exist: %v", err)
	}
	if got := c.wait("nosuch"); got != 127 {
		t.Errorf("exit status %d, want 127", got)
	}
	if _, err = c.tryExec("noexec", "/bin/data"); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("exec of a file that is no program: %v", err)
	}
	if got := c.wait("noexec"); got != 126 {
		t.Errorf("exit status %d, want 126", got)
	}

	pids, err := c.client.Pids(c.ctx(), &taskapi.PidsRequest{ID: c.id})
	if err != nil || len(pids.Processes) != 1 || pids.Processes[0].Pid != st.Pid {
		t.Errorf("pids %v, %v", pids, err)
	}
	if _, err := c.client.Delete(c.ctx(), &taskapi.DeleteRequest{ID: c.id}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("delete of a running container: %v", err)
	}
	if st, err := c.client.Stats(c.ctx(), &taskapi.StatsRequest{ID: c.id}); err != nil || st.Stats.GetTypeUrl() != "io.containerd.cgroups.v2.Metrics" {
		t.Errorf("stats: %v, %v", st, err)
	}
	resources := &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: []byte(`{"pids":{"limit":99}}`)}
	if _, err := c.client.Update(c.ctx(), &taskapi.UpdateTaskRequest{ID: c.id, Resources: resources}); err != nil {
		t.Errorf("update: %v", err)
	}
	resources.Value = []byte(`{"memory":{"limit":1073741824}}`)
	if _, err := c.client.Update(c.ctx(), &taskapi.UpdateTaskRequest{ID: c.id, Resources: resources}); err == nil ||
		!strings.Contains(err.Error(), "update of container c: a memory limit of 1GiB is beyond the container's machine, which was made with 256MiB") {
		t.Errorf("update beyond the machine: %v", err)
	}

	c.exec("long", "program", "sleep")
	c.kill(uint32(syscall.SIGTERM))
	if got := c.wait(""); got != 3 {
		t.Errorf("exit status %d, want 3", got)
	}
	if _, err := c.client.Kill(c.ctx(), &taskapi.KillRequest{ID: c.id, Signal: 15}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("kill of one that has ended: %v", err)
	}
	if d := c.delete(); d.ExitStatus != 3 || d.Pid != st.Pid {
		t.Errorf("delete says %v", d)
	}
	if err := syscall.Kill(int(st.Pid), 0); err == nil {
		t.Error("the VMM still runs")
	}
	if b, err := os.ReadFile(gone); err != nil || !strings.Contains(string(b), `"status":"stopped"`) {
		t.Errorf("poststop hook: %q, %v", b, err)
	}
	if _, err := c.client.State(c.ctx(), &taskapi.StateRequest{ID: c.id}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("state after delete: %v", err)
	}
	const want = "create, start, " +
		"added hosts, started hosts, exit hosts 0, added seven, started seven, exit seven 7, " +
		"added flood, started flood, exit flood 0, added piped, started piped, exit piped 0, added nosuch, added noexec, " +
		"added long, started long, exit long 137, exit c 3, delete 3"
	eventually(t, "all events", func() bool { return strings.Contains(b.events.names(), "delete") })
	if got := b.events.names(); got != want {
		t.Errorf("events\n%s\nwant\n%s", got, want)
	}
}

// read deletes an exec, which waits for its output, and returns that.
func read(t *testing.T, c *box, execID, path string) string {
	t.Helper()
	// The first read deletes; the output stays.
	_, err := c.client.Delete(c.ctx(), &taskapi.DeleteRequest{ID: c.id, ExecID: execID})
	if err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCreateOfAMissingCommandSaysWhatRuncSays(t *testing.T) {
	b := newBench(t)
	c := b.container("c", []string{"nosuch"})
	_, err := c.client.Create(c.ctx(), c.request())
	if err == nil || !strings.Contains(err.Error(), "OCI runtime create failed: ") ||
		!strings.Contains(err.Error(), `exec: "nosuch": executable file not found in $PATH`) {
		t.Errorf("error %v", err)
	}
	if _, err := c.client.Delete(c.ctx(), &taskapi.DeleteRequest{ID: c.id}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("delete after a failed create: %v", err)
	}
	if got := b.events.names(); got != "" {
		t.Errorf("events %q", got)
	}
}

func TestAKilledMachineEndsItsProcesses(t *testing.T) {
	b := newBench(t)
	c := b.container("c", []string{"program", "sleep"})
	c.create()
	c.start()
	c.exec("e", "program", "sleep")
	st, err := c.client.State(c.ctx(), &taskapi.StateRequest{ID: c.id})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(st.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := c.wait("e"); got != 137 {
		t.Errorf("exec's exit status %d", got)
	}
	if got := c.wait(""); got != 137 {
		t.Errorf("exit status %d", got)
	}
	// A containerd that starts now removes a task without processes as one that never was.
	if r, err := c.client.Pids(c.ctx(), &taskapi.PidsRequest{ID: c.id}); err != nil || len(r.Processes) != 1 || r.Processes[0].Pid != st.Pid {
		t.Errorf("pids of a task that is not deleted: %v, %v", r, err)
	}
	if _, err := c.tryExec("late", "program", "true"); err == nil {
		t.Error("exec in a machine that has ended")
	}
	if d := c.delete(); d.ExitStatus != 137 {
		t.Errorf("delete says %v", d)
	}
	eventually(t, "all events", func() bool { return strings.Contains(b.events.names(), "delete") })
	if got, want := b.events.names(), "create, start, added e, started e, exit e 137, exit c 137, added late, delete 137"; got != want {
		t.Errorf("events\n%s\nwant\n%s", got, want)
	}
}

func TestAHungGuestIsKilled(t *testing.T) {
	b := newBench(t)
	c := b.container("c", []string{"program", "sleep"})
	c.create()
	c.start()
	st, err := c.client.State(c.ctx(), &taskapi.StateRequest{ID: c.id})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(st.Pid), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.Kill(c.ctx(), &taskapi.KillRequest{ID: c.id, Signal: uint32(syscall.SIGTERM)}); err == nil ||
		!strings.Contains(err.Error(), "container c: the guest did not answer within") {
		t.Errorf("SIGTERM: %v", err)
	}
	c.kill(uint32(syscall.SIGKILL))
	if got := c.wait(""); got != 137 {
		t.Errorf("exit status %d", got)
	}
	c.delete()
}

func TestDeleteGivesUpACreate(t *testing.T) {
	b := newBench(t)
	c := b.container("c", []string{"program", "sleep"})
	failed := make(chan error, 1)
	go func() {
		_, err := c.client.Create(c.ctx(), c.request())
		failed <- err
	}()
	eventually(t, "the machine starts", func() bool {
		dirs, _ := filepath.Glob(filepath.Join(b.dir, "s", "*"))
		return len(dirs) > 0
	})
	if _, err := c.client.Delete(c.ctx(), &taskapi.DeleteRequest{ID: c.id}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("delete: %v", err)
	}
	select {
	case err := <-failed:
		if err == nil {
			t.Error("a container that was deleted exists")
		}
	case <-time.After(30 * time.Second):
		t.Error("create goes on")
	}
	if dirs, _ := filepath.Glob(filepath.Join(b.dir, "s", "*")); len(dirs) != 0 {
		t.Errorf("left behind: %v", dirs)
	}
}

func TestDeleteOfACreatedContainer(t *testing.T) {
	b := newBench(t)
	c := b.container("c", []string{"program", "true"})
	c.create()
	if d := c.delete(); d.ExitStatus != 137 {
		t.Errorf("delete says %v", d)
	}
}
