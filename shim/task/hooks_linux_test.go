package task_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// hookLog is a file to which hooks write what they are told.
type hookLog struct{ path string }

// hook writes its name and its standard input, and then does what script says.
func (l hookLog) hook(name, script string) specs.Hook {
	return specs.Hook{
		Path: "/bin/sh",
		Args: []string{"sh", "-c", `printf '%s ' "$NAME" >>"$LOG"; cat >>"$LOG"; echo >>"$LOG"; ` + script},
		Env:  []string{"PATH=/bin:/usr/bin", "NAME=" + name, "LOG=" + l.path},
	}
}

// told is one line of the log.
type told struct {
	name  string
	state specs.State
}

func (l hookLog) read(t *testing.T) []told {
	t.Helper()
	b, err := os.ReadFile(l.path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var list []told
	for line := range strings.Lines(string(b)) {
		name, text, _ := strings.Cut(line, " ")
		e := told{name: name}
		if err := json.Unmarshal([]byte(text), &e.state); err != nil {
			continue // it is being written
		}
		list = append(list, e)
	}
	return list
}

func (l hookLog) names(t *testing.T) string {
	t.Helper()
	var names []string
	for _, e := range l.read(t) {
		names = append(names, fmt.Sprintf("%s %s", e.name, e.state.Status))
	}
	return strings.Join(names, ", ")
}

// TestHooks: each hook runs at its time and is told the container's state. A
// poststart hook that takes its time holds up neither the exit nor the removal.
func TestHooks(t *testing.T) {
	b := newBench(t)
	l := hookLog{filepath.Join(b.dir, "log")}
	c := b.container("c", []string{"program", "sleep"}, func(s *specs.Spec) {
		s.Annotations = map[string]string{"some": "annotation"}
		s.Hooks = &specs.Hooks{
			Prestart:      []specs.Hook{l.hook("prestart", "")}, //nolint:staticcheck // deprecated, not gone
			CreateRuntime: []specs.Hook{l.hook("createRuntime1", ""), l.hook("createRuntime2", "")},
			Poststart:     []specs.Hook{l.hook("poststart", "exec sleep 1000")},
			Poststop:      []specs.Hook{l.hook("poststop1", "exit 1"), l.hook("poststop2", "")},
		}
	})
	c.create()
	st, err := c.client.State(c.ctx(), &taskapi.StateRequest{ID: c.id})
	if err != nil {
		t.Fatal(err)
	}
	const created = "prestart creating, createRuntime1 creating, createRuntime2 creating"
	if got := l.names(t); got != created {
		t.Errorf("hooks after create: %s, want %s", got, created)
	}
	started := make(chan error, 1)
	go func() {
		_, err := c.client.Start(c.ctx(), &taskapi.StartRequest{ID: c.id})
		started <- err
	}()
	eventually(t, "the poststart hook runs", func() bool { return l.names(t) == created+", poststart running" })
	c.kill(uint32(syscall.SIGKILL))
	if got := c.wait(""); got != 137 {
		t.Errorf("exit status %d, want 137", got)
	}
	select {
	case err := <-started:
		t.Errorf("start did not wait for its hook: %v", err)
	default:
	}
	c.delete()
	if err := <-started; err != nil {
		t.Errorf("start: %v", err)
	}
	if got, want := l.names(t), created+", poststart running, poststop1 stopped, poststop2 stopped"; got != want {
		t.Errorf("hooks: %s\nwant %s", got, want)
	}
	for _, e := range l.read(t) {
		s := e.state
		// QEMU runs before the hooks of create do, or at the same time.
		if s.Version != specs.Version || s.ID != "c" || s.Bundle != c.bundle || s.Pid != int(st.Pid) || s.Annotations["some"] != "annotation" {
			t.Errorf("%s was told %+v, the task's pid is %d", e.name, s, st.Pid)
		}
	}
}

// TestHookThatFails: the container is not made, the error says what the hook
// said, and what other hooks did is undone.
func TestHookThatFails(t *testing.T) {
	b := newBench(t)
	l := hookLog{filepath.Join(b.dir, "log")}
	c := b.container("c", []string{"program", "sleep"}, func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{
			CreateRuntime: []specs.Hook{l.hook("first", ""), l.hook("second", "echo the pool has no address left >&2; exit 3"), l.hook("third", "")},
			Poststop:      []specs.Hook{l.hook("poststop", "")},
		}
	})
	_, err := c.client.Create(c.ctx(), c.request())
	for _, want := range []string{"createRuntime hook /bin/sh: exit status 3: the pool has no address left"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v\nwant %s", err, want)
		}
	}
	if got, want := l.names(t), "first creating, second creating, poststop stopped"; got != want {
		t.Errorf("hooks: %s\nwant %s", got, want)
	}
	if _, err := c.client.State(c.ctx(), &taskapi.StateRequest{ID: c.id}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("state: %v", err)
	}
	if got := b.events.names(); got != "" {
		t.Errorf("events %q", got)
	}
}
