package hooks

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func sh(script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin", "X=y"}}
}

func TestRunGivesStateAndEnvironment(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	state := specs.State{Version: specs.Version, ID: "web", Pid: 42, Bundle: "/b", Annotations: map[string]string{"k": "v"}}
	t.Setenv("SECRET_OF_THE_SHIM", "1")
	if err := Run(context.Background(), "createRuntime", []specs.Hook{sh("cat >" + out + "; env >>" + out)}, state); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"id":"web"`, `"pid":42`, `"bundle":"/b"`, `"k":"v"`, "X=y"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the hook did not see %s: %s", want, b)
		}
	}
	if strings.Contains(string(b), "SECRET_OF_THE_SHIM") {
		t.Error("the hook saw the shim's environment")
	}
}

func TestRunStopsAtTheFirstFailure(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	err := Run(context.Background(), "createRuntime", []specs.Hook{sh("echo no network >&2; exit 3"), sh("touch " + mark)}, specs.State{})
	if err == nil || !strings.Contains(err.Error(), "createRuntime hook /bin/sh: exit status 3: no network") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the second hook ran")
	}
	if err := RunAll(context.Background(), "poststop", []specs.Hook{sh("exit 1"), sh("touch " + mark)}, specs.State{}); err == nil {
		t.Error("RunAll hid an error")
	}
	if _, err := os.Stat(mark); err != nil {
		t.Error("RunAll stopped at a failure")
	}
}

func TestRunEndsWhatExceedsItsTimeout(t *testing.T) {
	h := sh("sleep 600")
	one := 1
	h.Timeout = &one
	if err := Run(context.Background(), "poststop", []specs.Hook{h}, specs.State{}); err == nil || !strings.Contains(err.Error(), "killed after 1s") {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := Run(ctx, "poststop", []specs.Hook{sh("sleep 600")}, specs.State{}); err == nil {
		t.Error("no error from a hook that was cancelled")
	}
}

func TestErrorsAreBounded(t *testing.T) {
	err := Run(context.Background(), "prestart", []specs.Hook{sh("head -c 1000000 /dev/zero | tr '\\0' x; exit 1")}, specs.State{})
	if err == nil || len(err.Error()) > 2*maxOutput {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}
