package plan

import (
	"context"
	"encoding/json"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	cdiopts "github.com/containerd/containerd/v2/pkg/cdi"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/applevm/applevm/config"
)

// containerdSpec is what containerd's own packages make for a platform, by the options
// that clients use.
func containerdSpec(t testing.TB, platform string, opts ...oci.SpecOpts) *specs.Spec {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), "default")
	s, err := oci.GenerateSpecWithPlatform(ctx, nil, platform, &containers.Container{ID: "web"},
		append([]oci.SpecOpts{oci.WithProcessArgs("/bin/true")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// withMarker is nerdctl's --device applevm.dev/os=linux, with our CDI file.
func withMarker(t testing.TB) oci.SpecOpts {
	t.Helper()
	if err := cdi.Configure(cdi.WithSpecDirs("../../config/cdi"), cdi.WithAutoRefresh(false)); err != nil {
		t.Fatal(err)
	}
	return cdiopts.WithCDIDevices("applevm.dev/os=linux")
}

// likeNerdctl is what nerdctl 2.3.5 adds on macOS besides. It is written by hand: the
// functions (pkg/cmd/container, create.go) are not exported, and those for macOS are
// built there only.
func likeNerdctl(network string) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		s.Hooks = &specs.Hooks{
			CreateRuntime: []specs.Hook{{Path: "/opt/homebrew/bin/nerdctl", Args: []string{"/opt/homebrew/bin/nerdctl", "--namespace", "default", "internal", "oci-hook", "createRuntime"}}},
			Poststop:      []specs.Hook{{Path: "/opt/homebrew/bin/nerdctl", Args: []string{"/opt/homebrew/bin/nerdctl", "internal", "oci-hook", "postStop"}}},
		}
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
		s.Annotations = map[string]string{"nerdctl/networks": `["` + network + `"]`, "nerdctl/name": "true-0123", "nerdctl/namespace": "default"}
		return nil
	}
}

func planOf(t testing.TB, s *specs.Spec) (*Plan, specs.Spec) {
	t.Helper()
	in := input(t, nil)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	in.Spec, in.Network = b, config.Default().Network
	in.ID = "0123456789abcdef"
	p, err := New(in)
	if err != nil {
		t.Fatal(err)
	}
	var g specs.Spec
	if err := json.Unmarshal(p.Container.Spec, &g); err != nil {
		t.Fatal(err)
	}
	return p, g
}

// A spec for macOS becomes the same container as containerd's spec for Linux, but for
// what containerd's default keeps from processes that nerdctl lets them do.
func TestForeignSpecBecomesContainerdsDefault(t *testing.T) {
	linux := containerdSpec(t, "linux/"+runtime.GOARCH)
	linux.Process.NoNewPrivileges = false
	linux.Process.Env = nil
	_, want := planOf(t, linux)
	for _, tc := range []struct {
		name string
		opts []oci.SpecOpts
	}{
		{"without a linux section", nil},
		{"with the CDI device", []oci.SpecOpts{withMarker(t)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := containerdSpec(t, "darwin/arm64", tc.opts...)
			if (s.Linux == nil) != (tc.opts == nil) || len(s.Mounts) > 0 || s.Process.Capabilities != nil {
				t.Fatalf("this is no spec for macOS: %+v", s)
			}
			p, got := planOf(t, s)
			got.Process.Env = nil
			// The marker's rule allows what each container may use anyway.
			got.Linux.Resources.Devices = got.Linux.Resources.Devices[:1]
			if !reflect.DeepEqual(got, want) {
				g, _ := json.MarshalIndent(got, "", " ")
				w, _ := json.MarshalIndent(want, "", " ")
				t.Errorf("got %s\nwant %s", g, w)
			}
			if strings.Contains(string(p.Container.Spec), Marker) {
				t.Error("the marker is a device of the container's")
			}
		})
	}
}

func TestForeignSpecOfNerdctl(t *testing.T) {
	for _, tc := range []struct {
		network string
		user    bool
		host    bool
		files   map[string]string // a line that is to be in the file
	}{
		{"none", false, false, map[string]string{etcHosts: "127.0.1.1\t0123456789ab", etcHostname: "0123456789ab", etcResolv: "# This container has no network."}},
		{"host", true, true, map[string]string{etcHosts: "192.168.127.2\t0123456789ab", etcHostname: "0123456789ab", etcResolv: "nameserver 192.168.127.1"}},
	} {
		t.Run(tc.network, func(t *testing.T) {
			p, g := planOf(t, containerdSpec(t, "darwin/arm64", withMarker(t), likeNerdctl(tc.network)))
			if p.Network.User != tc.user || p.Network.HostPorts != tc.host || hasNamespace(g.Linux, specs.NetworkNamespace) == tc.host {
				t.Errorf("network %+v, namespaces %v", p.Network, g.Linux.Namespaces)
			}
			if len(p.Hooks.CreateRuntime)+len(p.Hooks.Poststop) > 0 {
				t.Errorf("hooks %+v", p.Hooks)
			}
			if g.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] != "0" {
				t.Error("the client's sysctl is gone")
			}
			if isMounted(g.Mounts, "/run") || !isMounted(g.Mounts, "/sys") {
				t.Errorf("mounts %+v", g.Mounts)
			}
			if len(p.Files) != len(tc.files) {
				t.Errorf("files %+v", p.Files)
			}
			for _, f := range p.Files {
				if strings.Contains(f.Content, "invalid") {
					t.Errorf("%s is %q", f.Destination, f.Content)
				}
				if !slices.Contains(strings.Split(f.Content, "\n"), tc.files[f.Destination]) {
					t.Errorf("%s is %q, want a line %q", f.Destination, f.Content, tc.files[f.Destination])
				}
			}
		})
	}
}

// What a foreign spec says itself stays.
func TestForeignSpecKeepsWhatItSays(t *testing.T) {
	dir := t.TempDir()
	s := containerdSpec(t, "darwin/arm64", withMarker(t), func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		s.Hostname = "box"
		s.Process.Cwd = "/srv"
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}}
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}
		s.Mounts = []specs.Mount{
			{Destination: "/dev/shm/", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}},
			{Destination: "/data", Source: dir, Options: []string{"rbind"}}, // as nerdctl makes it on macOS: no type
		}
		s.Linux.MaskedPaths = []string{"/proc/kcore"}
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229})
		s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/usr/local/bin/mine", Args: []string{"mine", "internal"}}}}
		return nil
	})
	p, g := planOf(t, s)
	if g.Hostname != "box" || g.Process.Cwd != "/srv" || !slices.Equal(g.Process.Capabilities.Bounding, []string{"CAP_KILL"}) ||
		len(g.Process.Rlimits) != 1 || g.Process.Rlimits[0].Type != "RLIMIT_CORE" || len(g.Linux.MaskedPaths) != 1 || len(g.Linux.ReadonlyPaths) == 0 {
		t.Errorf("spec %s", p.Container.Spec)
	}
	if len(g.Linux.Devices) != 1 || g.Linux.Devices[0].Path != "/dev/fuse" {
		t.Errorf("devices %+v", g.Linux.Devices)
	}
	var shm []specs.Mount
	for _, m := range g.Mounts {
		if m.Destination == "/dev/shm" {
			shm = append(shm, m)
		}
	}
	if len(shm) != 1 || !slices.Equal(shm[0].Options, []string{"size=1m"}) {
		t.Errorf("mounts of /dev/shm: %+v", shm)
	}
	if len(p.Machine.Shares) != 1 || p.Machine.Shares[0].Path != dir {
		t.Errorf("shares %+v", p.Machine.Shares)
	}
	if len(p.Hooks.Poststop) != 1 {
		t.Errorf("hooks %+v", p.Hooks)
	}
}

// A spec of a client on Linux is not filled in, however little it has.
func TestLinuxSpecIsNotCompleted(t *testing.T) {
	s := &specs.Spec{Version: specs.Version, Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}, Linux: &specs.Linux{}}
	likeNerdctlHooks := &specs.Hooks{Poststop: []specs.Hook{{Path: "/nerdctl", Args: []string{"nerdctl", "internal", "oci-hook", "postStop"}}}}
	s.Hooks = likeNerdctlHooks
	p, g := planOf(t, s)
	if len(g.Mounts) > 0 || len(g.Linux.Namespaces) > 0 || g.Process.Capabilities != nil || len(g.Process.Rlimits) > 0 || len(g.Linux.MaskedPaths) > 0 {
		t.Errorf("spec %s", p.Container.Spec)
	}
	if !reflect.DeepEqual(p.Hooks, *likeNerdctlHooks) {
		t.Errorf("hooks %+v", p.Hooks)
	}
}

func TestHooksOfABundle(t *testing.T) {
	hook := specs.Hook{Path: "/nerdctl", Args: []string{"nerdctl", "internal", "oci-hook", "postStop"}}
	for name, linux := range map[string]*specs.Linux{"foreign": nil, "linux": {}} {
		b, err := json.Marshal(specs.Spec{Process: &specs.Process{}, Linux: linux, Hooks: &specs.Hooks{Poststop: []specs.Hook{hook}},
			Annotations: map[string]string{"a": "b"}})
		if err != nil {
			t.Fatal(err)
		}
		h, annotations, err := Hooks(b)
		if err != nil || len(h.Poststop) != map[string]int{"foreign": 0, "linux": 1}[name] || linux != nil && annotations["a"] != "b" {
			t.Errorf("%s: %+v, %v, %v", name, h, annotations, err)
		}
	}
	if _, _, err := Hooks([]byte("{")); err == nil {
		t.Error("no error")
	}
}
