package e2e

import (
	"context"
	"encoding/json"
	"os"
	"runtime"
	"strings"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/core/containers"
	cdiopts "github.com/containerd/containerd/v2/pkg/cdi"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/applevm/applevm/e2e/stack"
)

// setSpec replaces the spec of a container that has no task. ctr cannot give a
// container both an image and a spec.
func setSpec(t *testing.T, s *stack.Stack, id string, spec *specs.Spec) {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+s.Dir+"/c.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", stack.Namespace)
	client := containersapi.NewContainersClient(conn)
	c, err := client.Get(ctx, &containersapi.GetContainerRequest{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	c.Container.Spec.Value = b
	_, err = client.Update(ctx, &containersapi.UpdateContainerRequest{Container: c.Container, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"spec"}}})
	if err != nil {
		t.Fatal(err)
	}
}

// A container whose spec was made for macOS, by containerd's packages and as nerdctl
// does, is what it would be had a client on Linux made it.
func TestSpecOfAClientOnMacOS(t *testing.T) {
	s := userStack(t)
	if err := cdi.Configure(cdi.WithSpecDirs("../config/cdi"), cdi.WithAutoRefresh(false)); err != nil {
		t.Fatal(err)
	}
	// As a shell's program sees it: file systems, namespaces, capabilities, what is masked, names.
	const show = `
for m in /proc /dev /dev/pts /dev/shm /dev/mqueue /sys /run; do mountpoint -q $m && echo $m; done | xargs
grep ^CapBnd /proc/self/status | cut -f2; ulimit -n; head -c1 /proc/kcore | wc -c; cat /proc/1/comm
touch /proc/sys/kernel/domainname 2>/dev/null && echo writable; ls /dev | grep -vx core | xargs; ls -d /sys/class/net/* | grep -v dummy | xargs -n1 basename | xargs
hostname; grep -c "$(hostname)" /etc/hosts; cat /etc/hostname; cut -c1-10 /etc/resolv.conf | head -n1; cat /data/file; id -u`
	dir := s.Dir + "/home"
	if err := os.WriteFile(dir+"/file", []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ network, want string }{
		{"none", "/proc /dev /dev/pts /dev/shm /dev/mqueue /sys/00000000a80425fb/1024/0/sh/fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero/lo/NAME/1/NAME/# This con/of the host/0"},
		{"host", "/proc /dev /dev/pts /dev/shm /dev/mqueue /sys/00000000a80425fb/1024/0/sh/fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero/eth0 lo/NAME/2/NAME/nameserver/of the host/0"},
	} {
		t.Run(tc.network, func(t *testing.T) {
			id := name(t)
			t.Cleanup(func() { remove(t, s, id) })
			must(t, s.Ctr(t.Context(), "container", "create", "--runtime", "io.containerd.applevm.v1", "--snapshotter", "applevm", img, id))
			spec, err := oci.GenerateSpecWithPlatform(namespaces.WithNamespace(t.Context(), stack.Namespace), nil, "darwin/arm64", &containers.Container{ID: id},
				cdiopts.WithCDIDevices("applevm.dev/os=linux"), oci.WithDefaultPathEnv, oci.WithProcessArgs("sh", "-c", show),
				oci.WithMounts([]specs.Mount{{Destination: "/data", Source: dir, Options: []string{"ro", "rbind"}}}),
				oci.WithAnnotations(map[string]string{"nerdctl/networks": `["` + tc.network + `"]`, "nerdctl/name": "x"}),
				func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
					// It would fail: there is no such program.
					s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/opt/homebrew/bin/nerdctl", Args: []string{"nerdctl", "internal", "oci-hook", "createRuntime"}}}}
					return nil
				})
			if err != nil {
				t.Fatal(err)
			}
			setSpec(t, s, id, spec)
			out := must(t, s.Ctr(t.Context(), "task", "start", "--fifo-dir", s.Dir+"/fifo", id))
			want := strings.ReplaceAll(tc.want, "NAME", id[:12])
			if got := strings.Join(strings.Split(strings.TrimSpace(out), "\n"), "/"); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// nerdctl itself, with the flags that config/macos/applevm.sh adds, takes our CDI file.
func TestNerdctlWithTheFlagsForMacOS(t *testing.T) {
	s := rootStack(t)
	b, err := os.ReadFile("../config/cdi/applevm.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Dir+"/cdi/applevm.json", b, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(s.Dir + "/cdi/applevm.json") })
	out := must(t, s.NerdctlRun(t.Context(), "--platform", "linux/"+runtime.GOARCH, "--annotation", "dev.applevm.network=user", "--device", "applevm.dev/os=linux",
		"--rm", "--hostname", "box", img, "sh", "-c", "ls /dev/applevm* 2>/dev/null; ls -d /sys/class/net/eth0; hostname; grep ^nameserver /etc/resolv.conf"))
	if want := "/sys/class/net/eth0\nbox\nnameserver "; !strings.HasPrefix(out, want) {
		t.Errorf("got %q, want %q first", out, want)
	}
	clean(t, s)
}
