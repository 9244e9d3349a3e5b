package plan

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/network/lan"
	"github.com/applevm/applevm/vmm"
)

// input is a complete one; change alters its spec.
func input(t testing.TB, change func(*specs.Spec)) Input {
	t.Helper()
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "/host/bundle/rootfs"},
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"},
		Linux: &specs.Linux{
			CgroupsPath: "/host/cgroup",
			Namespaces:  []specs.LinuxNamespace{{Type: specs.NetworkNamespace}, {Type: specs.PIDNamespace}},
		},
	}
	if change != nil {
		change(s)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return Input{
		Namespace: "default",
		ID:        "web",
		Spec:      b,
		Rootfs: snapshot(manifest.Manifest{
			Layers: []manifest.Layer{
				{Path: "/host/base.img", FSType: "ext4"}, {Path: "/host/app.img", FSType: "ext4"},
			},
			Writable: &manifest.Writable{Path: "/host/rw.img", FSType: "ext4"},
		}),
		Machine:    config.Default().Machine,
		Boot:       Boot{Kernel: "/host/kernel", Initrd: "/host/initramfs", Cmdline: []string{"quiet"}},
		Host:       Host{DefaultCPUs: 1, Memory: 8 << 30},
		Network:    config.Network{Default: config.NetworkNone},
		Stat:       os.Stat,
		ReadFile:   os.ReadFile,
		Interfaces: func(string) (int, error) { return 2, nil },
		Join:       func(string, lan.Member) (*lan.Port, error) { return nil, errors.New("no network is shared here") },
		Tmpfs:      func(string) (int64, bool) { return 0, false },
	}
}

func guestSpecOf(t *testing.T, p *Plan) specs.Spec {
	t.Helper()
	var s specs.Spec
	if err := json.Unmarshal(p.Container.Spec, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDisksAndTreesMatch(t *testing.T) {
	p, err := New(input(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	want := []vmm.Disk{
		{ID: "l0", Path: "/host/base.img", ReadOnly: true},
		{ID: "l1", Path: "/host/app.img", ReadOnly: true},
		{ID: "w", Path: "/host/rw.img"},
	}
	if len(p.Machine.Disks) != len(want) {
		t.Fatalf("disks %v", p.Machine.Disks)
	}
	for i, d := range p.Machine.Disks {
		if d != want[i] {
			t.Errorf("disk %d is %+v, want %+v", i, d, want[i])
		}
	}
	r := p.Container.Rootfs
	if len(r.Lower) != 2 || r.Lower[0].Disk != "l0" || r.Lower[1].Disk != "l1" || r.Lower[0].Directory != manifest.LayerRoot {
		t.Errorf("lower trees %v", r.Lower)
	}
	if r.Writable.GetDisk() != "w" || r.Writable.GetDirectory() != "" {
		t.Errorf("writable tree %v", r.Writable)
	}
	if p.Machine.Name != "default/web" || p.Machine.Kernel != "/host/kernel" {
		t.Errorf("machine %+v", p.Machine)
	}
}

func TestViewIsReadOnly(t *testing.T) {
	in := input(t, nil)
	in.Rootfs.Writable = nil
	p, err := New(in)
	if err != nil {
		t.Fatal(err)
	}
	if p.Container.Rootfs.Writable != nil || len(p.Machine.Disks) != 2 {
		t.Errorf("rootfs %v, disks %v", p.Container.Rootfs, p.Machine.Disks)
	}
}

func TestMachineSize(t *testing.T) {
	for _, tc := range []struct {
		name        string
		cpus        int
		annotations map[string]string
		wantCPUs    int
		wantMemory  int64
		wantErr     string
	}{
		{name: "defaults", wantCPUs: 1, wantMemory: 512 << 20},
		{name: "configured", cpus: 3, wantCPUs: 3, wantMemory: 512 << 20},
		{name: "annotated", cpus: 3, annotations: map[string]string{AnnotationCPUs: "2", AnnotationMemory: "768MiB"}, wantCPUs: 2, wantMemory: 768 << 20},
		{name: "gibibytes", annotations: map[string]string{AnnotationMemory: "1GiB"}, wantCPUs: 1, wantMemory: 1 << 30},
		{name: "bytes", annotations: map[string]string{AnnotationMemory: "268435456"}, wantCPUs: 1, wantMemory: 256 << 20},
		{name: "rounded up", annotations: map[string]string{AnnotationMemory: "268435457"}, wantCPUs: 1, wantMemory: 257 << 20},
		{name: "no size", annotations: map[string]string{AnnotationMemory: "plenty"}, wantErr: `annotation dev.applevm.memory is "plenty"`},
		{name: "too small", annotations: map[string]string{AnnotationMemory: "64MiB"}, wantErr: "at least 128MiB"},
		{name: "overflow", annotations: map[string]string{AnnotationMemory: "9999999999999999999999"}, wantErr: AnnotationMemory},
		{name: "no number", annotations: map[string]string{AnnotationCPUs: "many"}, wantErr: `annotation dev.applevm.cpus is "many"`},
		{name: "no CPU", annotations: map[string]string{AnnotationCPUs: "0"}, wantErr: "from 1 to 64"},
		{name: "more than the host has", annotations: map[string]string{AnnotationMemory: "9GiB"}, wantErr: "machine default/web is to have 9GiB, the host has 8GiB: lower annotation dev.applevm.memory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(t, func(s *specs.Spec) { s.Annotations = tc.annotations })
			in.Machine.CPUs = tc.cpus
			p, err := New(in)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("error %v, want one with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Machine.CPUs != tc.wantCPUs || p.Machine.Memory != tc.wantMemory {
				t.Errorf("%d CPUs, %d bytes; want %d, %d", p.Machine.CPUs, p.Machine.Memory, tc.wantCPUs, tc.wantMemory)
			}
		})
	}
	in := input(t, func(s *specs.Spec) { s.Annotations = map[string]string{AnnotationMemory: "9GiB"} })
	if _, err := New(in); !errors.Is(err, vmm.ErrInsufficientMemory) {
		t.Errorf("error %v is no ErrInsufficientMemory", err)
	}
}

func TestMounts(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "hosts")
	if err := os.WriteFile(file, []byte("127.0.0.1 box\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, append(make([]byte, ext4MagicAt), 0x53, 0xEF), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(shortdir.New(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tc := range []struct {
		name  string
		mount specs.Mount
		file  *File
		guest string // type of the mount that the guest makes
		err   string
		class func(error) bool
	}{
		{name: "proc", mount: specs.Mount{Destination: "/proc", Type: "proc", Source: "/host/proc"}, guest: "proc"},
		{name: "cgroup", mount: specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup"}, guest: "cgroup"},
		{name: "tmpfs", mount: specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs"}, guest: "tmpfs"},
		{name: "hosts, writable", mount: specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: file, Options: []string{"rbind", "rw"}}, file: &File{Source: file, Destination: "/etc/hosts", ReadOnly: false}},
		{name: "hosts, by option", mount: specs.Mount{Destination: "/etc/../etc/hosts", Type: "none", Source: file, Options: []string{"bind"}}, file: &File{Source: file, Destination: "/etc/hosts", ReadOnly: false}},
		{name: "read-only file", mount: specs.Mount{Destination: "/x", Type: "bind", Source: file, Options: []string{"ro"}}, guest: "virtiofs"},
		{name: "writable file", mount: specs.Mount{Destination: "/x", Type: "bind", Source: file}, guest: "virtiofs"},
		{name: "large file", mount: specs.Mount{Destination: "/x", Type: "bind", Source: big, Options: []string{"ro"}}, guest: "virtiofs"},
		{name: "large copy", mount: specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: big}, err: "more than 1048576 bytes", class: errdefs.IsNotImplemented},
		{name: "socket", mount: specs.Mount{Destination: "/agent", Type: "bind", Source: socket, Options: []string{"rbind", "ro"}}, guest: api.SocketMount},
		{name: "socket by its type", mount: specs.Mount{Destination: "/agent", Type: "uds", Source: socket}, guest: api.SocketMount},
		{name: "no socket", mount: specs.Mount{Destination: "/agent", Type: "uds", Source: file}, err: "is no socket", class: errdefs.IsInvalidArgument},
		{name: "image", mount: specs.Mount{Destination: "/x", Type: "ext4", Source: image, Options: []string{"rw", "noatime"}}, guest: api.DiskMount},
		{name: "no image", mount: specs.Mount{Destination: "/x", Type: "ext4", Source: file}, err: "mount the image " + file + " at /x: it has no ext4 file system", class: errdefs.IsInvalidArgument},
		{name: "a directory as an image", mount: specs.Mount{Destination: "/x", Type: "ext4", Source: dir}, err: "is no image file", class: errdefs.IsNotImplemented},
		{name: "no file", mount: specs.Mount{Destination: "/x", Type: "ext4", Source: "/nowhere/at/all"}, err: "mount source of /x", class: errdefs.IsInvalidArgument},
		{name: "ext4's own option", mount: specs.Mount{Destination: "/x", Type: "ext4", Source: image, Options: []string{"data=journal"}}, err: `option "data=journal"`, class: errdefs.IsNotImplemented},
		{name: "device", mount: specs.Mount{Destination: "/dev/x", Type: "bind", Source: "/dev/null", Options: []string{"ro"}}, err: "special file /dev/null", class: errdefs.IsNotImplemented},
		{name: "missing source", mount: specs.Mount{Destination: "/x", Type: "bind", Source: "/nowhere/at/all"}, err: "mount source of /x", class: errdefs.IsInvalidArgument},
		{name: "shared with the host", mount: specs.Mount{Destination: "/x", Type: "bind", Source: file, Options: []string{"rbind", "rshared"}}, err: "the mount at /x asks for shared propagation", class: errdefs.IsNotImplemented},
		{name: "following the host", mount: specs.Mount{Destination: "/x", Type: "bind", Source: file, Options: []string{"rbind", "rslave"}}, guest: "virtiofs"},
		{name: "relative source", mount: specs.Mount{Destination: "/x", Type: "bind", Source: "y"}, err: "not an absolute path", class: errdefs.IsInvalidArgument},
		{name: "relative destination", mount: specs.Mount{Destination: "x", Type: "tmpfs"}, err: "not an absolute path", class: errdefs.IsInvalidArgument},
		{name: "another type", mount: specs.Mount{Destination: "/nfs", Type: "nfs", Source: "server:/x"}, err: `type "nfs" at /nfs is not implemented`, class: errdefs.IsNotImplemented},
		{name: "ID-mapped", mount: specs.Mount{Destination: "/x", Type: "tmpfs", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}}, err: "ID-mapped", class: errdefs.IsNotImplemented},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := New(input(t, func(s *specs.Spec) { s.Mounts = []specs.Mount{tc.mount} }))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !tc.class(err) {
					t.Fatalf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := guestSpecOf(t, p).Mounts
			switch {
			case tc.file != nil && (len(p.Files) != 1 || p.Files[0] != *tc.file || len(got) != 0):
				t.Errorf("files %v, mounts %v; want the file %v", p.Files, got, *tc.file)
			case tc.guest != "" && (len(got) != 1 || got[0].Type != tc.guest || got[0].Source != tc.guest && tc.guest != "virtiofs" && tc.guest != api.SocketMount && tc.guest != api.DiskMount):
				t.Errorf("mounts %v, want one of %s", got, tc.guest)
			}
		})
	}
}

func TestReadFilesCopiesContentAndMode(t *testing.T) {
	name := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(name, []byte("127.0.0.1 box\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	p, err := New(input(t, func(s *specs.Spec) {
		s.Mounts = []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: name, Options: []string{"ro"}}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	// A hook may fill the file in after the plan was made.
	if err := os.WriteFile(name, []byte("127.0.0.1 later\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	files, err := p.ReadFiles()
	if err != nil {
		t.Fatal(err)
	}
	f := files[0]
	if string(f.Content) != "127.0.0.1 later\n" || f.Mode != 0o640 || !f.ReadOnly || f.Path != "/etc/hosts" || f.Uid != 0 {
		t.Errorf("file %v", f)
	}
}

func TestReadFilesBoundsTheRequest(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := New(input(t, func(s *specs.Spec) {
		for _, d := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/hosts"} {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: d, Type: "bind", Source: name, Options: []string{"ro"}})
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.ReadFiles(); !errdefs.IsNotImplemented(err) {
		t.Errorf("error %v", err)
	}
}

func TestRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*specs.Spec)
		err    string
		class  func(error) bool
	}{
		{"no process", func(s *specs.Spec) { s.Process = nil }, "no process", errdefs.IsInvalidArgument},
		{"no command", func(s *specs.Spec) { s.Process.Args = nil }, "no command", errdefs.IsInvalidArgument},
		{"pid namespace", func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/proc/1/ns/pid" }, "pid namespace /proc/1/ns/pid", errdefs.IsNotImplemented},
		{"hook in the container", func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/usr/bin/hook"}}}
		}, "createContainer hook /usr/bin/hook", errdefs.IsNotImplemented},
		{"seccomp listener", func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{ListenerPath: "/run/x"} }, "seccomp listener", errdefs.IsNotImplemented},
		{"network devices", func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}} }, "network devices", errdefs.IsNotImplemented},
		{"Windows", func(s *specs.Spec) { s.Windows = &specs.Windows{} }, "another system", errdefs.IsInvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := New(input(t, tc.change))
			if err == nil || !strings.Contains(err.Error(), tc.err) || !tc.class(err) {
				t.Errorf("error %v, want one with %q", err, tc.err)
			}
		})
	}
}

func TestGuestSpecHasNothingOfTheHost(t *testing.T) {
	in := input(t, func(s *specs.Spec) {
		s.Annotations = map[string]string{"nerdctl/state-dir": "/host/state"}
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/host/hook"}}, Poststop: []specs.Hook{{Path: "/host/hook"}}, StartContainer: []specs.Hook{{Path: "/hook"}}}
		s.Process.ApparmorProfile = "nerdctl-default"
		s.Process.SelinuxLabel = "label"
		s.Linux.MountLabel = "label"
		s.Root.Readonly = true
	})
	p, err := New(in)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(p.Container.String()+string(p.Container.Spec), "/host") {
		t.Errorf("host paths in %s", p.Container)
	}
	s := guestSpecOf(t, p)
	if !reflect.DeepEqual(s.Hooks, &specs.Hooks{StartContainer: []specs.Hook{{Path: "/hook"}}}) || s.Annotations != nil || s.Process.ApparmorProfile != "" || s.Process.SelinuxLabel != "" || s.Linux.MountLabel != "" {
		t.Errorf("spec %s", p.Container.Spec)
	}
	if !s.Root.Readonly {
		t.Error("the root is writable")
	}
	if len(p.Hooks.CreateRuntime) != 1 || len(p.Hooks.Poststop) != 1 || p.Annotations["nerdctl/state-dir"] == "" {
		t.Errorf("hooks %v, annotations %v", p.Hooks, p.Annotations)
	}
	if len(p.Warnings) != 3 {
		t.Errorf("warnings %q", p.Warnings)
	}
}

func TestHostnameDefaultsToTheID(t *testing.T) {
	for _, tc := range []struct {
		name, set, want string
		uts             bool
	}{
		{"given", "box", "box", true},
		{"not given", "", "web", true},
		{"no namespace for it", "", "the-host", false},
	} {
		in := input(t, func(s *specs.Spec) {
			s.Hostname = tc.set
			if tc.uts {
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UTSNamespace})
			}
		})
		in.Host.Name = "the-host"
		p, err := New(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := guestSpecOf(t, p).Hostname; got != tc.want {
			t.Errorf("%s: host name %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestProcessDropsLabels(t *testing.T) {
	b, warnings, err := Process([]byte(`{"args":["id"],"cwd":"/","apparmorProfile":"x","selinuxLabel":"y"}`))
	if err != nil || len(warnings) != 2 || strings.Contains(string(b), "apparmor") {
		t.Errorf("%s, %q, %v", b, warnings, err)
	}
	for _, bad := range []string{"", "{", `{"args":[]}`, strings.Repeat(" ", 3<<20)} {
		if _, _, err := Process([]byte(bad)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func TestRootfsOfASnapshot(t *testing.T) {
	snap := t.TempDir()
	fsDir := filepath.Join(snap, manifest.FacadeDir)
	if err := os.Mkdir(fsDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := manifest.Write(snap, manifest.Manifest{Layers: []manifest.Layer{{Path: "/x", FSType: "ext4"}}}); err != nil {
		t.Fatal(err)
	}
	if m, err := FindRootfs([]*types.Mount{{Type: "bind", Source: fsDir}}); err != nil || len(m.Layers) != 1 {
		t.Errorf("%v, %v", m, err)
	}
	for _, tc := range []struct {
		name   string
		mounts []*types.Mount
		err    string
	}{
		{"tmpfs", []*types.Mount{{Type: "tmpfs", Source: "tmpfs"}}, `mount type "tmpfs" is not implemented: use the applevm snapshotter`},
		{"two", []*types.Mount{{Type: "bind"}, {Type: "erofs"}}, `2 mounts (the last of type "erofs")`},
		{"a relative path", []*types.Mount{{Type: "bind", Source: "some/where"}}, "absolute path"},
		{"mapped IDs", []*types.Mount{{Type: "bind", Source: "/x", Options: []string{"uidmap=0:1:2"}}}, `option "uidmap=0:1:2"`},
	} {
		if _, err := FindRootfs(tc.mounts); err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: error %v, want one with %q", tc.name, err, tc.err)
		}
	}
}

// FuzzNew checks that no spec makes the plan panic, and that what goes into the
// guest names neither the files of the host that the plan found, nor hooks,
// namespaces or a control group.
func FuzzNew(f *testing.F) {
	seed := input(f, func(s *specs.Spec) {
		s.Mounts = []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: "/host/hosts"}, {Destination: "/proc", Type: "proc"}}
		s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/host/hook"}}}
	})
	f.Add(seed.Spec)
	f.Add([]byte(`{"linux":{},"process":{"args":["x"]},"annotations":{"dev.applevm.memory":"1e99GiB"}}`))
	f.Fuzz(func(t *testing.T, spec []byte) {
		in := input(t, nil)
		in.Spec = spec
		in.Stat = func(string) (fs.FileInfo, error) { return os.Stat("plan.go") }
		p, err := New(in)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a text")
			}
			return
		}
		var g specs.Spec
		if err := json.Unmarshal(p.Container.Spec, &g); err != nil {
			t.Fatal(err)
		}
		for _, m := range g.Mounts {
			if m.Source != m.Type && (m.Type != "virtiofs" || len(m.Source) > 12) {
				t.Errorf("mount source %q", m.Source)
			}
		}
		for _, ns := range g.Linux.Namespaces {
			if ns.Path != "" {
				t.Errorf("namespace path %q", ns.Path)
			}
		}
		if g.Root.Path != "" || g.Hooks != nil || g.Annotations != nil || g.Linux.CgroupsPath != "" {
			t.Errorf("guest spec %s", p.Container.Spec)
		}
		if p.Machine.CPUs < 1 || p.Machine.Memory < minMemory || p.Machine.Memory > in.Host.Memory {
			t.Errorf("machine %+v", p.Machine)
		}
	})
}
