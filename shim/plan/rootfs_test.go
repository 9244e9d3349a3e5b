package plan

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/vmm"
)

// TestRootfsInADirectory is for all ways in which a directory can be the root file
// system. Its path stays on the host.
func TestRootfsInADirectory(t *testing.T) {
	bundle, dir := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(bundle, "rootfs"), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bind := func(path string, options ...string) []*types.Mount {
		return []*types.Mount{{Type: "bind", Source: path, Options: append(options, "rbind")}}
	}
	overlay := func(options ...string) []*types.Mount {
		return []*types.Mount{{Type: "overlay", Source: "overlay", Options: append(options, "lowerdir=/a:/b")}}
	}
	for _, tc := range []struct {
		name   string
		mounts []*types.Mount
		path   string // the spec's
		want   vmm.Share
		mount  bool
		err    string
	}{
		{name: "bind", mounts: bind(dir, "rw"), path: "rootfs", want: vmm.Share{Path: dir}},
		{name: "read-only bind", mounts: bind(dir, "ro"), path: "rootfs", want: vmm.Share{Path: dir, ReadOnly: true}},
		{name: "overlay", mounts: overlay(), path: "rootfs", want: vmm.Share{Path: bundle + "/rootfs"}, mount: true},
		{name: "read-only overlay", mounts: overlay("ro"), want: vmm.Share{Path: bundle + "/rootfs", ReadOnly: true}, mount: true},
		{name: "the spec's", path: dir, want: vmm.Share{Path: dir}},
		{name: "the spec's in the bundle", path: "rootfs", want: vmm.Share{Path: bundle + "/rootfs"}},
		{name: "none", err: "no root filesystem: use the applevm snapshotter"},
		{name: "missing", path: "/nowhere/at/all", err: "/nowhere/at/all"},
		{name: "a file", mounts: bind(dir + "/file"), err: "not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rootfs, err := FindRootfs(tc.mounts)
			if err != nil {
				t.Fatal(err)
			}
			in := input(t, func(s *specs.Spec) { s.Root = &specs.Root{Path: tc.path} })
			in.Rootfs, in.Bundle = rootfs, bundle
			p, err := New(in)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tc.want.Tag = "root"
			if got := p.Machine.Shares; !reflect.DeepEqual(got, []vmm.Share{tc.want}) || len(p.Machine.Disks) > 0 {
				t.Errorf("shares %+v, disks %v, want %+v", got, p.Machine.Disks, tc.want)
			}
			if s := p.Container.GetRootfs().GetShare(); s.GetTag() != "root" || s.GetReadOnly() != tc.want.ReadOnly {
				t.Errorf("the guest is told %v", s)
			}
			if (p.RootMount != nil) != tc.mount {
				t.Errorf("mount %v", p.RootMount)
			}
			if strings.Contains(p.Container.String()+string(p.Container.Spec), dir) {
				t.Errorf("a path of the host in %s", p.Container)
			}
		})
	}
}

// A directory that is mounted is a share, once for each way in which it is mounted; the
// guest gets a tag for it, among the other mounts.
func TestMountedDirectories(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	p, err := New(input(t, func(s *specs.Spec) {
		s.Mounts = []specs.Mount{
			{Destination: "/a", Type: "bind", Source: a + "/", Options: []string{"rbind", "rprivate"}},
			{Destination: "/run", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/run/b", Type: "none", Source: b, Options: []string{"bind", "ro", "nosuid"}},
			{Destination: "/again", Type: "bind", Source: a, Options: []string{"rbind", "rw"}},
			{Destination: "/a-too", Type: "bind", Source: a, Options: []string{"rro"}},
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := []vmm.Share{{Tag: "m0", Path: a}, {Tag: "m1", Path: b, ReadOnly: true, OneMount: true}, {Tag: "m2", Path: a, ReadOnly: true, OneMount: true}}
	if !reflect.DeepEqual(p.Machine.Shares, want) {
		t.Errorf("shares %+v, want %+v", p.Machine.Shares, want)
	}
	var got []string
	for _, m := range guestSpecOf(t, p).Mounts {
		got = append(got, m.Destination+" "+m.Type+" "+m.Source+" "+strings.Join(m.Options, ","))
	}
	if text := strings.Join(got, "\n"); text != "/a virtiofs m0 rbind,rprivate\n/run tmpfs tmpfs \n/run/b virtiofs m1 bind,ro,nosuid\n"+
		"/again virtiofs m0 rbind,rw\n/a-too virtiofs m2 rro" {
		t.Errorf("mounts\n%s", text)
	}
}

// A file that is mounted is in a share with other such files, not with what lies beside
// it.
func TestMountedFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	p, err := New(input(t, func(s *specs.Spec) {
		s.Mounts = []specs.Mount{
			{Destination: "/dir", Type: "bind", Source: dir},
			{Destination: "/a", Type: "bind", Source: a, Options: []string{"rbind", "ro"}},
			{Destination: "/b", Type: "bind", Source: b},
			{Destination: "/b-too", Type: "bind", Source: b, Options: []string{"ro"}},
			{Destination: "/a-too", Type: "bind", Source: dir + "/./a", Options: []string{"ro"}},
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := []vmm.Share{{Tag: "m0", Path: dir, OneMount: true}, {Tag: "files-ro", Files: []string{a, b}, ReadOnly: true}, {Tag: "files", Files: []string{b}}}
	if !reflect.DeepEqual(p.Machine.Shares, want) {
		t.Errorf("shares %+v, want %+v", p.Machine.Shares, want)
	}
	var got []string
	for _, m := range guestSpecOf(t, p).Mounts {
		got = append(got, m.Destination+" "+m.Source)
	}
	if text := strings.Join(got, ", "); text != "/dir m0, /a files-ro/0, /b files/0, /b-too files-ro/1, /a-too files-ro/0" {
		t.Errorf("mounts %s", text)
	}
}
