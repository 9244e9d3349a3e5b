package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/guest/agent/agenttest"
	"github.com/applevm/applevm/guest/api"
)

func TestSpecThatCannotRun(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*specs.Spec)
		want   string
	}{
		"no linux section":   {func(s *specs.Spec) { s.Linux = nil }, "no linux section"},
		"no process":         {func(s *specs.Spec) { s.Process = nil }, "process property must not be empty"},
		"no command":         {func(s *specs.Spec) { s.Process.Args = nil }, "args must not be empty"},
		"relative directory": {func(s *specs.Spec) { s.Process.Cwd = "x" }, "Cwd must be an absolute path"},
		"namespace of the host": {func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "/run/netns/x" },
			`network namespace: "/run/netns/x" is a path on the host`},
		"directory of the host": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Source: "/srv", Type: "none", Options: []string{"rbind"}})
		}, `mount /data: the source "/srv" is on the host`},
		"too long": {func(s *specs.Spec) { s.Annotations = map[string]string{"x": strings.Repeat("x", api.MaxSpec)} }, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			s := agenttest.Spec([]string{"true"})
			tc.change(s)
			b, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = parseSpec(b, "id")
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestSpecLosesWhatIsTheHosts(t *testing.T) {
	s := agenttest.Spec([]string{"true"})
	s.Process.ApparmorProfile, s.Process.SelinuxLabel, s.Linux.MountLabel = "a", "b", "c"
	hook := []specs.Hook{{Path: "/hook"}}
	s.Hooks = &specs.Hooks{CreateRuntime: hook, CreateContainer: hook, StartContainer: hook, Poststart: hook, Poststop: hook}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	s, warnings, err := parseSpec(b, "id")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s.Hooks, &specs.Hooks{StartContainer: hook}) {
		t.Errorf("hooks %+v", s.Hooks)
	}
	if s.Linux.CgroupsPath != "/id" || s.Process.ApparmorProfile+s.Process.SelinuxLabel+s.Linux.MountLabel != "" {
		t.Errorf("spec %+v", s)
	}
	if len(warnings) != 3 {
		t.Errorf("warnings %q", warnings)
	}
}

func TestProcessTypes(t *testing.T) {
	good := `{"args":["x"],"cwd":"/"}`
	for url, ok := range map[string]bool{
		"types.containerd.io/opencontainers/runtime-spec/1/Process": true,
		"types.containerd.io/opencontainers/runtime-spec/1/Spec":    false,
		"": false,
	} {
		if _, _, err := parseProcess(&anypb.Any{TypeUrl: url, Value: []byte(good)}); (err == nil) != ok {
			t.Errorf("type %q: %v", url, err)
		}
	}
}

func TestIDs(t *testing.T) {
	for id, ok := range map[string]bool{
		"a": true, "A-1_b.c": true, strings.Repeat("x", 76): true,
		"": false, ".": false, "..": false, "a/b": false, "a b": false, "ä": false, strings.Repeat("x", 77): false,
	} {
		if err := validID(id); (err == nil) != ok {
			t.Errorf("ID %q: %v", id, err)
		}
	}
}

func TestPanicIsAnErrorOfItsCall(t *testing.T) {
	_, err := intercept(t.Context(), nil, &ttrpc.UnaryServerInfo{FullMethod: "/x"}, func(context.Context, func(any) error) (any, error) {
		panic("oh")
	})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "oh") {
		t.Errorf("error %v", err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for kind, code := range map[error]codes.Code{
		errdefs.ErrNotFound: codes.NotFound, errdefs.ErrAlreadyExists: codes.AlreadyExists,
		errdefs.ErrFailedPrecondition: codes.FailedPrecondition, errdefs.ErrInvalidArgument: codes.InvalidArgument,
		errdefs.ErrNotImplemented: codes.Unimplemented, errdefs.ErrUnavailable: codes.Unavailable,
		context.Canceled: codes.Canceled, context.DeadlineExceeded: codes.DeadlineExceeded, errors.New("x"): codes.Unknown,
	} {
		if got := status.Code(toStatus(fmt.Errorf("w: %w", kind))); got != code {
			t.Errorf("%v became %v, want %v", kind, got, code)
		}
	}
	long := toStatus(errors.New(strings.Repeat("x", 1<<20)))
	if n := len(status.Convert(long).Message()); n != api.MaxErrorText {
		t.Errorf("the text is %d bytes long", n)
	}
}

func TestArchOfPrograms(t *testing.T) {
	elf := func(machine byte, order byte) []byte {
		b := make([]byte, 20)
		copy(b, "\x7fELF\x02")
		b[5] = order
		b[18] = machine
		if order == 2 {
			b[18], b[19] = 0, machine
		}
		return b
	}
	for _, tc := range []struct {
		head []byte
		want string
	}{
		{elf(62, 1), "amd64"}, {elf(183, 1), "arm64"}, {elf(22, 2), "s390x"}, {elf(3, 1), "386"}, {elf(250, 1), ""},
		{[]byte("\x7fELF"), ""}, {nil, ""}, {[]byte("#!/bin/sh\nxxxxxxxxxxxxxxxxxxxx"), ""},
	} {
		if got := elfArch(tc.head); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.head, got, tc.want)
		}
	}
}

func FuzzElfArch(f *testing.F) {
	f.Add([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00"))
	f.Fuzz(func(_ *testing.T, b []byte) { elfArch(b) })
}

func FuzzParseSpec(f *testing.F) {
	b, err := json.Marshal(agenttest.Spec([]string{"true"}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, err := parseSpec(b, "id")
		if err != nil {
			return
		}
		if _, err := libcontainerProcess(s.Process); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("error %v", err)
		}
		// libcontainer itself must not fail worse than with an error.
		s.Root.Path = "/"
		_, _ = libcontainerConfig(s, "id")
	})
}

func TestMachineSysctls(t *testing.T) {
	s := &specs.Spec{Linux: &specs.Linux{
		Namespaces: []specs.LinuxNamespace{{Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace}},
		Sysctl: map[string]string{
			"kernel.shmmax": "1", "fs.mqueue.msg_max": "1", "net/ipv4/conf/eth0.1/forwarding": "1", // the container's
			"kernel.domainname": "m", "user.max_mnt_namespaces": "m", "vm.swappiness": "m", "fs.file-max": "m",
		},
	}}
	m := machineSysctls(s)
	if len(m) != 4 || len(s.Linux.Sysctl) != 3 {
		t.Fatalf("the machine's %v, the container's %v", m, s.Linux.Sysctl)
	}
	for key, value := range m {
		if value != "m" {
			t.Errorf("%s is the container's", key)
		}
	}
}

func TestSetSysctls(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "proc/sys")
	for _, f := range []string{"proc/sys/vm/swappiness", "proc/sys/net/conf/eth0.1/x", "outside"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ key, file, err string }{
		{key: "vm.swappiness", file: "vm/swappiness"},
		{key: "vm/swappiness", file: "vm/swappiness"},
		{key: "net.conf.eth0/1.x", file: "net/conf/eth0.1/x"},
		{key: "net/conf/eth0.1/x", file: "net/conf/eth0.1/x"},
		{key: "vm.none", err: "the machine's kernel has no such parameter"},
		{key: "vm", err: "is a directory"},
		{key: "", err: "no name"}, {key: "vm..x", err: "no name"}, {key: "../../outside", err: "no name"}, {key: "vm/../../../outside", err: "no name"},
		{key: "vm.\x00", err: "no name"},
	} {
		value := tc.key + "'s"
		err := setSysctls(dir, map[string]string{tc.key: value})
		if tc.err != "" {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: error %v, want %q in it", tc.key, err, tc.err)
			}
			continue
		}
		if got, _ := os.ReadFile(filepath.Join(dir, tc.file)); err != nil || string(got) != value {
			t.Errorf("%q: %v; the file holds %q", tc.key, err, got)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(root, "outside")); len(b) > 0 {
		t.Errorf("a file outside was written: %q", b)
	}
}

func TestMappingOfDisks(t *testing.T) {
	l := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}, {ContainerID: maxID, HostID: 7, Size: 1}}
	got := forDisk(l)
	if len(got) != 3 || got[2].HostID != 0 || got[2].ContainerID != maxID-1 || got[2].Size != 1 {
		t.Errorf("%+v", got)
	}
	if got := forDisk([]specs.LinuxIDMapping{{Size: maxID}}); len(got) != 1 {
		t.Errorf("root is mapped twice: %+v", got)
	}
	m := &idmap{uids: l, gids: l[:1]}
	for _, tc := range []struct {
		uid, gid uint32
		u, g     int
	}{{0, 999, 100000, 100999}, {maxID, maxID, 7, maxID}, {1000, 1000, 1000, 1000}} {
		if u, g := m.of(tc.uid, tc.gid); u != tc.u || g != tc.g {
			t.Errorf("%d:%d is %d:%d", tc.uid, tc.gid, u, g)
		}
	}
	for name, s := range map[string]*specs.Linux{
		"no mapping":           {Namespaces: []specs.LinuxNamespace{{Type: specs.UserNamespace}}},
		"no mapping of groups": {Namespaces: []specs.LinuxNamespace{{Type: specs.UserNamespace}}, UIDMappings: l},
	} {
		if _, err := userMapping(&specs.Spec{Linux: s}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
