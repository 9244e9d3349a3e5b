package plan

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestNested(t *testing.T) {
	all := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	for name, tt := range map[string]struct {
		annotation string
		linux      specs.Linux
		want       bool
		devices    int
		fail       string
	}{
		"nothing":                        {},
		"the device":                     {linux: specs.Linux{Devices: []specs.LinuxDevice{kvm}}, want: true, devices: 1},
		"privileged, on a host with KVM": {linux: specs.Linux{Devices: []specs.LinuxDevice{kvm}, Resources: all}, devices: 1},
		"privileged and asked for":       {annotation: "true", linux: specs.Linux{Devices: []specs.LinuxDevice{kvm}, Resources: all}, want: true, devices: 1},
		"asked for":                      {annotation: "true", want: true, devices: 1},
		"both":                           {annotation: "true", linux: specs.Linux{Devices: []specs.LinuxDevice{kvm}}, want: true, devices: 1},
		"another device":                 {linux: specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 229}}}, devices: 1},
		"off":                            {annotation: "false"},
		"off, but the device":            {annotation: "false", linux: specs.Linux{Devices: []specs.LinuxDevice{kvm}}, fail: "leave one of them out"},
		"no boolean":                     {annotation: "maybe", fail: "use true or false"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &specs.Spec{Linux: &tt.linux, Annotations: map[string]string{}}
			if tt.annotation != "" {
				s.Annotations[AnnotationNested] = tt.annotation
			}
			got, err := nested(s)
			if tt.fail != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fail) {
					t.Errorf("got %v, want %q", err, tt.fail)
				}
				return
			}
			if err != nil || got != tt.want || len(s.Linux.Devices) != tt.devices {
				t.Errorf("got %v, %v, devices %v", got, err, s.Linux.Devices)
			}
			if r := s.Linux.Resources; name == "asked for" && (r == nil || len(r.Devices) != 1 || *r.Devices[0].Minor != 232 || !r.Devices[0].Allow) {
				t.Errorf("rules %+v", r)
			}
		})
	}
}
