package plan

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestMachineFollowsTheContainersLimits(t *testing.T) {
	memory := func(n int64) func(*specs.LinuxResources) {
		return func(r *specs.LinuxResources) { r.Memory = &specs.LinuxMemory{Limit: &n} }
	}
	quota := func(q int64) func(*specs.LinuxResources) {
		return func(r *specs.LinuxResources) { r.CPU = &specs.LinuxCPU{Quota: &q, Period: new(uint64(100000))} }
	}
	set := func(s string) func(*specs.LinuxResources) {
		return func(r *specs.LinuxResources) { r.CPU = &specs.LinuxCPU{Cpus: s} }
	}
	for _, tc := range []struct {
		name        string
		resources   func(*specs.LinuxResources)
		wish        Size
		annotations map[string]string
		cpus        int
		usable      int64 // at least; 0 is the default's
		err         string
	}{
		{name: "no limits", resources: func(*specs.LinuxResources) {}, cpus: 1},
		{name: "memory", resources: memory(1 << 30), cpus: 1, usable: 1 << 30},
		{name: "little memory", resources: memory(6 << 20), cpus: 1, usable: 6 << 20},
		{name: "unlimited memory", resources: memory(-1), cpus: 1},
		{name: "reservation", resources: func(r *specs.LinuxResources) { r.Memory = &specs.LinuxMemory{Reservation: new(int64(2 << 30))} }, cpus: 1, usable: 2 << 30},
		{name: "one CPU and a half", resources: quota(150000), cpus: 2},
		{name: "half a CPU", resources: quota(50000), cpus: 1},
		{name: "more than the host has", resources: quota(9000000), cpus: 4},
		{name: "set", resources: set("0,2"), cpus: 2},
		{name: "set of more than the host has", resources: set("0-7"), cpus: 4},
		{name: "set that is none", resources: set("3-1"), err: "no list of CPUs"},
		{name: "unified", resources: func(r *specs.LinuxResources) {
			r.Unified = map[string]string{"cpu.max": "250000 100000", "memory.max": "1073741824"}
		}, cpus: 3, usable: 1 << 30},
		{name: "options win over limits", resources: quota(150000), wish: Size{CPUs: 3, Memory: 1 << 30}, cpus: 3, usable: 600 << 20},
		{name: "annotations win over options", resources: quota(150000), wish: Size{CPUs: 3}, annotations: map[string]string{AnnotationCPUs: "6"}, cpus: 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(t, func(s *specs.Spec) {
				s.Linux.Resources = &specs.LinuxResources{}
				tc.resources(s.Linux.Resources)
				s.Annotations = tc.annotations
			})
			in.Host.CPUs, in.Wish = 4, tc.wish
			p, err := New(in)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			size := Size{p.Machine.CPUs, p.Machine.Memory}
			if size.CPUs != tc.cpus || size.Usable() < tc.usable || size.Memory%mib != 0 || tc.usable == 0 && size.Memory != 512*mib {
				t.Errorf("%+v, usable %d", size, size.Usable())
			}
		})
	}
}

func TestUpdateIsBoundByTheMachine(t *testing.T) {
	s := Size{CPUs: 2, Memory: 512 * mib}
	for _, tc := range []struct{ name, json, err string }{
		{"memory", `{"memory":{"limit":134217728}}`, ""},
		{"too much memory", `{"memory":{"limit":1073741824}}`, "a memory limit of 1GiB is beyond the container's machine, which was made with 512MiB"},
		{"too much, by its own name", `{"unified":{"memory.max":"1073741824"}}`, "a memory limit of 1GiB"},
		{"no limit", `{"memory":{"limit":-1}}`, ""},
		{"CPUs", `{"cpu":{"quota":200000,"period":100000,"cpus":"0-1"}}`, ""},
		{"too many CPUs", `{"cpu":{"quota":250000}}`, "a limit of 2.5 CPUs is beyond the container's machine, which was made with 2 virtual CPUs"},
		{"as many as before", `{"cpu":{"quota":800000}}`, ""},
		{"set beyond", `{"cpu":{"cpus":"0,2-3"}}`, "a set of 3 CPUs is beyond"},
		{"no resources", `[]`, "no JSON of an OCI LinuxResources"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, _, _, err := Update([]byte(tc.json), s, Limits{MilliCPUs: 8000})
			if tc.err == "" && (err != nil || len(out) == 0) || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("%s, error %v, want %q", out, err, tc.err)
			}
		})
	}
	out, _, warnings, err := Update([]byte(`{"devices":[{"allow":true,"access":"rwm"}],"cpu":{"mems":"1"}}`), s, Limits{})
	if err != nil || strings.Contains(string(out), "rwm") || strings.Contains(string(out), "mems") || len(warnings) != 1 {
		t.Errorf("%s, %q, %v", out, warnings, err)
	}
}
