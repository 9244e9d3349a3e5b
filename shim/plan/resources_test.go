package plan

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

func TestDevices(t *testing.T) {
	all := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Access: "rwm", Major: ptr(int64(-1))}}}
	some := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "b", Major: ptr(int64(8)), Access: "rwm"}}}
	fuse := specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}
	disk := specs.LinuxDevice{Path: "/dev/sda", Type: "b", Major: 8}
	fifo := specs.LinuxDevice{Path: "/run/fifo", Type: "p"}
	for _, tc := range []struct {
		name      string
		resources *specs.LinuxResources
		devices   []specs.LinuxDevice
		want      []string
		warnings  int
		err       string
	}{
		{name: "none"},
		{name: "without hardware", resources: some, devices: []specs.LinuxDevice{fuse, fifo}, want: []string{"/dev/fuse", "/run/fifo"}},
		{name: "the host's", resources: some, devices: []specs.LinuxDevice{fuse, disk}, err: "the host's device /dev/sda (b 8:0)"},
		{name: "the same number of another kind", devices: []specs.LinuxDevice{{Path: "/dev/x", Type: "b", Major: 10, Minor: 229}}, err: "/dev/x (b 10:229)"},
		{name: "privileged", resources: all, devices: []specs.LinuxDevice{fuse, disk}, want: []string{"/dev/fuse"}, warnings: 1},
		{name: "privileged, the host's alone", resources: all, devices: []specs.LinuxDevice{disk}, want: []string{"/dev/null"}, warnings: 1},
		{name: "privileged without devices", resources: all},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := New(input(t, func(s *specs.Spec) { s.Linux.Resources, s.Linux.Devices = tc.resources, tc.devices }))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !errdefs.IsNotImplemented(err) {
					t.Fatalf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range guestSpecOf(t, p).Linux.Devices {
				got = append(got, d.Path)
			}
			if !slices.Equal(got, tc.want) || len(p.Warnings) != tc.warnings {
				t.Errorf("devices %q, warnings %q", got, p.Warnings)
			}
		})
	}
}

func TestResourcesOfTheMachine(t *testing.T) {
	for _, tc := range []struct {
		name       string
		cpus, mems string
		wantCPUs   string
		wantMems   string
		warnings   int
		err        string
	}{
		{name: "fewer than the machine has", cpus: "4,6-7", wantCPUs: "0-2", warnings: 1},
		{name: "as many", cpus: "0-3", warnings: 1},
		{name: "more", cpus: "8-15", warnings: 1},
		{name: "one twice", cpus: "5,5", wantCPUs: "0-0", warnings: 1},
		{name: "the machine's memory node", mems: "0", wantMems: "0"},
		{name: "other memory nodes", mems: "0-1", warnings: 1},
		{name: "no list", cpus: "all", err: `"all" is no list of CPUs`},
		{name: "backwards", cpus: "3-1", err: "no list of CPUs"},
		{name: "absurd", cpus: "0-60000", err: "no list of CPUs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, warnings, err := resources(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: tc.cpus, Mems: tc.mems}}, 4)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !errdefs.IsInvalidArgument(err) {
					t.Fatalf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.CPU.Cpus != tc.wantCPUs || r.CPU.Mems != tc.wantMems || len(warnings) != tc.warnings {
				t.Errorf("CPUs %q, nodes %q, warnings %q", r.CPU.Cpus, r.CPU.Mems, warnings)
			}
		})
	}
	throttle := []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8}, Rate: 1}}
	for name, b := range map[string]*specs.LinuxBlockIO{
		"weight": {WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8}}}},
		"read":   {ThrottleReadBpsDevice: throttle}, "write": {ThrottleWriteBpsDevice: throttle},
		"reads": {ThrottleReadIOPSDevice: throttle}, "writes": {ThrottleWriteIOPSDevice: throttle},
	} {
		if _, _, err := resources(&specs.LinuxResources{BlockIO: b}, 1); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "block device 8:0") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, warnings, err := resources(&specs.LinuxResources{
		Network: &specs.LinuxNetwork{ClassID: ptr(uint32(1))}, BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(10))},
	}, 1)
	if err != nil || r.Network != nil || r.BlockIO == nil || len(warnings) != 1 {
		t.Errorf("%+v, %q, %v", r, warnings, err)
	}
}

func TestSharedMemoryIsTheMachines(t *testing.T) {
	for _, tc := range []struct {
		name         string
		dest, source string
		want         string // the guest's mount: type and options
	}{
		{"the host's", "/dev/shm", "/dev/shm", "tmpfs nosuid,mode=1777"},
		{"the host's message queues", "/dev/mqueue", "/dev/mqueue", "mqueue nosuid"},
		{"another container's", "/dev/shm", "/host/state/shm", "tmpfs nosuid,mode=1777,size=1048576"},
		{"a directory", "/dev/shm", "/host/data", ""},
		{"elsewhere", "/shm", "/dev/shm", "virtiofs rbind,nosuid"}, // the host's own, shared
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(t, func(s *specs.Spec) {
				s.Mounts = []specs.Mount{{Destination: tc.dest, Type: "bind", Source: tc.source, Options: []string{"rbind", "nosuid"}}}
			})
			in.Tmpfs = func(dir string) (int64, bool) { return 1 << 20, dir != "/host/data" }
			p, err := New(in)
			if tc.want == "" {
				if err == nil {
					t.Error("no error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m := guestSpecOf(t, p).Mounts[0]
			if got := m.Type + " " + strings.Join(m.Options, ","); got != tc.want || m.Source != m.Type && m.Type != "virtiofs" {
				t.Errorf("mount %+v, want %s", m, tc.want)
			}
		})
	}
}
