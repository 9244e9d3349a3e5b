package plan

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
)

// AnnotationNested says, as a boolean, that the container can run machines of its own: it gets
// /dev/kvm, as with a client's --device /dev/kvm, for which the client's host must have one.
const AnnotationNested = "dev.applevm.nested"

// kvm is the device, by its number in Documentation/admin-guide/devices.txt.
var kvm = specs.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}

// nested tells whether the machine is to have the processor's virtualization, and completes the
// spec of a container that asks for it by the annotation. A client that names all of its host's devices has not
// asked for this one.
func nested(s *specs.Spec) (bool, error) {
	has := slices.ContainsFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool {
		return d.Type == kvm.Type && d.Major == kvm.Major && d.Minor == kvm.Minor
	})
	asked := has && !api.AllDevices(s.Linux.Resources)
	on, given, err := boolAnnotation(s.Annotations, AnnotationNested, asked)
	switch {
	case err != nil || !given:
		return on, err
	case !on && asked:
		return false, invalid("annotation %s is %q, but the container is to have /dev/kvm: leave one of them out", AnnotationNested, s.Annotations[AnnotationNested])
	case on && !has:
		s.Linux.Devices = append(s.Linux.Devices, kvm)
		if s.Linux.Resources == nil {
			s.Linux.Resources = &specs.LinuxResources{}
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices,
			specs.LinuxDeviceCgroup{Allow: true, Type: kvm.Type, Major: &kvm.Major, Minor: &kvm.Minor, Access: "rwm"})
	}
	return on, nil
}
