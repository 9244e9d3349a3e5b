package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/e2e/stack"
)

// hookDevice is a CDI device whose hooks write down what they are told: nerdctl puts
// a device's hooks into the container's spec.
type hookDevice struct {
	name string // "dev.test/hooks=NAME"
	log  string
}

// hookKinds are those that run on the host, in the specification's order (runtime
// specification, runtime.md, "Lifecycle").
var hookKinds = []string{"prestart", "createRuntime", "poststart", "poststop"}

// device makes one. Of kind fails fails; it may be empty.
func device(t *testing.T, s *stack.Stack, name, fails string) hookDevice {
	t.Helper()
	d := hookDevice{"dev.test/hooks-" + name + "=all", filepath.Join(s.Dir, "tmp", "hooks-"+name)}
	script := filepath.Join(s.Dir, "tmp", "hook-"+name+".sh")
	const text = "#!/bin/sh\nstate=$(cat)\nprintf '%%s %%s\\n' \"$1\" \"$state\" >>%s\n[ \"$1\" != \"%s\" ] || { echo the hook says no >&2; exit 3; }\n"
	if err := os.WriteFile(script, fmt.Appendf(nil, text, d.log, fails), 0o755); err != nil {
		t.Fatal(err)
	}
	type hook map[string]any
	hooks := []hook{{"hookName": "startContainer", "path": "/bin/sh", "args": []string{"sh", "-c", "cat >/start-hook"}}}
	for _, k := range hookKinds {
		hooks = append(hooks, hook{"hookName": k, "path": script, "args": []string{"hook", k}, "env": []string{"PATH=/bin:/usr/bin"}})
	}
	spec, err := json.Marshal(map[string]any{
		"cdiVersion": "0.6.0", "kind": "dev.test/hooks-" + name,
		"devices": []any{map[string]any{"name": "all", "containerEdits": map[string]any{"hooks": hooks}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "cdi", "hooks-"+name+".json"), spec, 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

// told is what hooks were told, one after the other.
func (d hookDevice) told(t *testing.T) (kinds []string, states []specs.State) {
	t.Helper()
	for line := range strings.Lines(readAll(t, d.log)) {
		kind, text, _ := strings.Cut(line, " ")
		var st specs.State
		if err := json.Unmarshal([]byte(text), &st); err != nil {
			t.Fatalf("%s was told %q: %v", kind, text, err)
		}
		kinds, states = append(kinds, kind+" "+string(st.Status)), append(states, st)
	}
	return kinds, states
}

// run runs a container with the device.
func (d hookDevice) run(t *testing.T, s *stack.Stack, rt, name string, args ...string) result {
	t.Helper()
	t.Cleanup(func() { _ = s.Nerdctl(context.Background(), "rm", "-f", name).Run() })
	flags := []string{"--name", name, "--device", d.name, "--annotation", "dev.test/some=thing", img}
	if rt == "applevm" {
		return do(t, s.NerdctlRun(t.Context(), append(flags, args...)...))
	}
	return do(t, s.Nerdctl(t.Context(), append(append([]string{"--snapshotter", "overlayfs", "run", "--runtime", "io.containerd.runc.v2", "--net", "none"}, flags...), args...)...))
}

// Hooks run in the specification's order and are told the container's state, as they
// are by runc.
func TestHooks(t *testing.T) {
	s := rootStack(t)
	unpacked(t, s)
	order := map[string]string{}
	on(t, func(t *testing.T, rt string) {
		d := device(t, s, rt, "")
		name := "hooked-" + rt
		r := d.run(t, s, rt, name, "cat", "/start-hook")
		if r.code != 0 {
			t.Fatalf("run: %s", r)
		}
		id := strings.TrimSpace(must(t, s.Nerdctl(t.Context(), "inspect", "--format", "{{.ID}}", name)))
		must(t, s.Nerdctl(t.Context(), "rm", name))

		var start specs.State
		if err := json.Unmarshal([]byte(r.stdout), &start); err != nil {
			t.Fatalf("the startContainer hook was told %q: %v", r.stdout, err)
		}
		if start.ID != id || start.Version == "" || start.Pid == 0 {
			t.Errorf("the startContainer hook was told %+v", start)
		}
		kinds, states := d.told(t)
		order[rt] = strings.Join(append(kinds, "startContainer "+string(start.Status)), ", ")
		for i, st := range states {
			if st.ID != id || st.Version == "" || filepath.Base(st.Bundle) != id || st.Annotations["dev.test/some"] != "thing" {
				t.Errorf("%s was told %+v", kinds[i], st)
			}
			if st.Pid == 0 && st.Status != specs.StateStopped {
				t.Errorf("%s was told no pid: %+v", kinds[i], st)
			}
		}
	})
	// The specification says that the process runs by then; runc says otherwise.
	if want := strings.Replace(order["runc"], "poststart created", "poststart running", 1); order["applevm"] != want {
		t.Errorf("applevm: %s\nrunc:    %s", order["applevm"], want)
	}
}

// A hook that fails before or at the start is the end of the container, with its words
// in the error, and what other hooks have done is undone; a poststop hook is not.
func TestFailingHooks(t *testing.T) {
	s := rootStack(t)
	unpacked(t, s)
	for _, fails := range hookKinds {
		t.Run(fails, func(t *testing.T) {
			seen := map[string]string{}
			for _, rt := range runtimes {
				d := device(t, s, rt+"-"+fails, fails)
				name := strings.ToLower("fails-" + fails + "-" + rt)
				r := d.run(t, s, rt, name, "sh", "-c", "echo ran; sleep 0.1")
				_ = do(t, s.Nerdctl(t.Context(), "rm", "-f", name))
				kinds, _ := d.told(t)
				seen[rt] = strings.Replace(strings.Join(kinds, ", "), "poststart created", "poststart running", 1)
				if rt != "applevm" {
					continue
				}
				if fails == "poststop" {
					if r.code != 0 || r.stdout != "ran\n" {
						t.Errorf("run: %s", r)
					}
				} else if r.code == 0 || !strings.Contains(r.stderr, fails+" hook") || !strings.Contains(r.stderr, "the hook says no") {
					t.Errorf("run: %s", r)
				}
			}
			if seen["applevm"] != seen["runc"] {
				t.Errorf("applevm: %s\nrunc:    %s", seen["applevm"], seen["runc"])
			}
		})
	}
	clean(t, s)
}
