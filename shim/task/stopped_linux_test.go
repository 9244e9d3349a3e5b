package task_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/types/known/anypb"
)

// vmm sends a signal to the VMM.
func (c *box) vmm(sig syscall.Signal) {
	c.t.Helper()
	st, err := c.client.State(c.ctx(), &taskapi.StateRequest{ID: c.id})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := syscall.Kill(int(st.Pid), sig); err != nil {
		c.t.Fatal(err)
	}
}

// gaveUp runs a call whose client does not wait for long, and requires that it fails.
func (c *box) gaveUp(what string, call func(context.Context) error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := call(ctx); err == nil {
		c.t.Errorf("%s succeeded while the VMM was stopped", what)
	}
}

func (c *box) status() tasktypes.Status {
	c.t.Helper()
	st, err := c.client.State(c.ctx(), &taskapi.StateRequest{ID: c.id})
	if err != nil {
		c.t.Fatal(err)
	}
	return st.Status
}

// What a client has given up, because the machine was stopped, does not happen
// later: no container stays paused, no exec stays behind.
func TestGivenUpCallsLeaveNothing(t *testing.T) {
	b := newBench(t)
	c := b.container("c", []string{"program", "sleep"})
	c.create()
	c.start()
	c.vmm(syscall.SIGSTOP)
	c.gaveUp("pause", func(ctx context.Context) error {
		_, err := c.client.Pause(ctx, &taskapi.PauseRequest{ID: c.id})
		return err
	})
	c.vmm(syscall.SIGCONT)
	eventually(t, "a program runs, the container is resumed", func() bool {
		_, err := c.tryExec("after-pause", "program", "true")
		if err == nil {
			return c.wait("after-pause") == 0
		}
		_, _ = c.client.Delete(c.ctx(), &taskapi.DeleteRequest{ID: c.id, ExecID: "after-pause"})
		return false
	})
	if st := c.status(); st != tasktypes.Status_RUNNING {
		t.Errorf("status %v", st)
	}

	if _, err := c.addExec("e", "program", "sleep"); err != nil {
		t.Fatal(err)
	}
	c.vmm(syscall.SIGSTOP)
	c.gaveUp("exec", func(ctx context.Context) error {
		_, err := c.client.Start(ctx, &taskapi.StartRequest{ID: c.id, ExecID: "e"})
		return err
	})
	c.vmm(syscall.SIGCONT)
	if got := c.wait("e"); got == 0 {
		t.Error("an exec that failed has exit status 0")
	}
	if _, err := c.client.Delete(c.ctx(), &taskapi.DeleteRequest{ID: c.id, ExecID: "e"}); err != nil {
		t.Errorf("delete of the exec: %v", err)
	}
	// Its name is free again, in the guest too.
	eventually(t, "the exec is gone from the guest", func() bool {
		_, err := c.tryExec("e", "program", "true")
		if err == nil {
			return c.wait("e") == 0
		}
		_, _ = c.client.Delete(c.ctx(), &taskapi.DeleteRequest{ID: c.id, ExecID: "e"})
		return false
	})
	n := 0
	eventually(t, "only the container's own process runs", func() bool {
		n++
		id := fmt.Sprintf("ps%d", n)
		out := c.exec(id, "program", "ps")
		c.wait(id)
		return read(t, c, id, out) == "program sleep\n"
	})
	c.kill(uint32(syscall.SIGKILL))
	c.wait("")
	c.delete()
	eventually(t, "all events", func() bool { return strings.Contains(b.events.names(), "delete") })
	if got := b.events.names(); strings.Contains(got, "Paused") || strings.Contains(got, "exit e 1") {
		t.Errorf("events %s", got)
	}
}

// A start that comes late is told by its event.
func TestLateStartIsTold(t *testing.T) {
	b := newBench(t)
	c := b.container("c", []string{"program", "sleep"})
	c.create()
	c.vmm(syscall.SIGSTOP)
	c.gaveUp("start", func(ctx context.Context) error {
		_, err := c.client.Start(ctx, &taskapi.StartRequest{ID: c.id})
		return err
	})
	if st := c.status(); st != tasktypes.Status_CREATED {
		t.Errorf("status %v", st)
	}
	c.vmm(syscall.SIGCONT)
	eventually(t, "the container runs", func() bool { return c.status() == tasktypes.Status_RUNNING && c.output() == "ready\n" })
	c.kill(uint32(syscall.SIGTERM))
	if got := c.wait(""); got != 3 {
		t.Errorf("exit status %d", got)
	}
	c.delete()
	eventually(t, "all events", func() bool { return strings.Contains(b.events.names(), "delete") })
	if got, want := b.events.names(), "create, start, exit c 3, delete 3"; got != want {
		t.Errorf("events %s, want %s", got, want)
	}
}

var notAnswered = regexp.MustCompile(`container c: the guest has not answered (6[4-9]|7\d) requests`)

// Every call to a machine that is stopped fails, and kill and delete work.
func TestStoppedMachine(t *testing.T) {
	b := newBench(t)
	c := b.container("c", []string{"program", "sleep"})
	c.create()
	c.start()
	c.exec("e", "program", "sleep")
	c.vmm(syscall.SIGSTOP)
	resources := &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: []byte(`{"pids":{"limit":99}}`)}
	calls := map[string]func() error{
		"stats":  func() error { _, err := c.client.Stats(c.ctx(), &taskapi.StatsRequest{ID: c.id}); return err },
		"resume": func() error { _, err := c.client.Resume(c.ctx(), &taskapi.ResumeRequest{ID: c.id}); return err },
		"update": func() error {
			_, err := c.client.Update(c.ctx(), &taskapi.UpdateTaskRequest{ID: c.id, Resources: resources})
			return err
		},
		"kill of an exec": func() error {
			_, err := c.client.Kill(c.ctx(), &taskapi.KillRequest{ID: c.id, ExecID: "e", Signal: 9})
			return err
		},
		"resize": func() error {
			_, err := c.client.ResizePty(c.ctx(), &taskapi.ResizePtyRequest{ID: c.id, Width: 1, Height: 1})
			return err
		},
		"exec": func() error { _, err := c.tryExec("late", "program", "true"); return err },
	}
	failed := make(chan string)
	for name, call := range calls {
		go func() {
			if err := call(); err == nil || !strings.Contains(err.Error(), "container c: the guest did not answer within") {
				t.Errorf("%s: %v", name, err)
			}
			failed <- name
		}()
	}
	for range calls {
		<-failed
	}
	// What its clients have given up waits for the guest, but not without bound: the next is
	// refused at once. A client that gives up before its request has come that far leaves
	// nothing that waits, so each waits a little longer than the one before.
	patience := 30 * time.Millisecond
	refused := func(i int) bool {
		id := fmt.Sprintf("given-up-%d", i)
		if _, err := c.addExec(id, "program", "true"); err != nil {
			t.Fatal(err)
		}
		patience = min(patience+patience/64, 2*time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := c.client.Start(ctx, &taskapi.StartRequest{ID: c.id, ExecID: id})
		if err == nil {
			t.Fatalf("exec %s runs in a stopped machine", id)
		}
		// Those that were asked at the same time may all be let in: a few more than 64.
		return notAnswered.MatchString(err.Error())
	}
	deadline := time.Now().Add(3 * time.Minute)
	for n := 0; !refused(n); n++ {
		if time.Now().After(deadline) {
			t.Errorf("%d requests wait for the guest", n)
			break
		}
	}
	c.kill(uint32(syscall.SIGKILL))
	if got := c.wait(""); got != 137 {
		t.Errorf("exit status %d", got)
	}
	if got := c.wait("e"); got != 137 {
		t.Errorf("exit status %d of the exec", got)
	}
	c.delete()
}
