package plan

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Marker is the device by which a client on another system says that it wants a
// Linux container: config/cdi/applevm.json names it, nerdctl's flag
// --device applevm.dev/os=linux puts it into the spec. Without any linux section
// containerd's client takes no Linux image's configuration (oci.WithImageConfig).
const Marker = "/dev/applevm-os-linux"

// nerdctlIDLength is how much of its container's ID nerdctl takes for a hostname.
const nerdctlIDLength = 12

// annotationNerdctlHostname is what nerdctl's --hostname asks for.
const annotationNerdctlHostname = "nerdctl/hostname"

// isForeign tells whether a client that is not on Linux made the spec: it has no linux
// section, or one that was made for the marker's sake.
func isForeign(s *specs.Spec) bool {
	return s.Linux == nil || slices.ContainsFunc(s.Linux.Devices, isMarker)
}

func isMarker(d specs.LinuxDevice) bool { return filepath.Clean(d.Path) == Marker }

// complete gives a foreign spec what containerd's default spec for Linux has, where
// it says nothing of its own: mounts, namespaces, capabilities, limits of open files,
// masked and read-only paths, the devices' rule. It takes away the marker, and the
// hooks that cannot do on another system what they are for (onlyOnLinux).
//
// Whether a process may gain privileges (noNewPrivileges) is left as the client has it:
// false, as with nerdctl on Linux.
func complete(s *specs.Spec, namespace, id string) error {
	ctx := namespaces.WithNamespace(context.Background(), namespace)
	d, err := oci.GenerateSpecWithPlatform(ctx, nil, "linux/"+runtime.GOARCH, &containers.Container{ID: id})
	if err != nil {
		return fmt.Errorf("make containerd's default spec for Linux: %w", err)
	}
	if s.Version == "" {
		s.Version = d.Version
	}
	if s.Root == nil {
		s.Root = &specs.Root{}
	}
	s.Mounts = append(slices.DeleteFunc(d.Mounts, func(m specs.Mount) bool {
		// nerdctl leaves /run to the image (github.com/containerd/nerdctl/issues/157).
		return isMounted(s.Mounts, m.Destination) || m.Destination == "/run" && s.Annotations[annotationNerdctlName] != ""
	}), s.Mounts...)
	completeProcess(s.Process, d.Process)
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	completeLinux(s.Linux, d.Linux)
	s.Linux.Namespaces = completeNamespaces(s, d.Linux.Namespaces)
	completeHostname(s, id)
	s.Hooks = withoutLinuxHooks(s.Hooks)
	return nil
}

func completeProcess(p, d *specs.Process) {
	if p.Cwd == "" {
		p.Cwd = d.Cwd
	}
	if p.Capabilities == nil {
		p.Capabilities = d.Capabilities
	}
	if len(p.Rlimits) == 0 {
		p.Rlimits = d.Rlimits
	}
}

func completeLinux(l, d *specs.Linux) {
	l.Devices = slices.DeleteFunc(l.Devices, isMarker)
	if l.CgroupsPath == "" {
		l.CgroupsPath = d.CgroupsPath
	}
	if l.MaskedPaths == nil {
		l.MaskedPaths = d.MaskedPaths
	}
	if l.ReadonlyPaths == nil {
		l.ReadonlyPaths = d.ReadonlyPaths
	}
	if l.Resources == nil {
		l.Resources = &specs.LinuxResources{}
	}
	// The last rule that fits counts: what the spec allows comes after the general no.
	// The marker has the number of /dev/null, which each container may use.
	l.Resources.Devices = append(slices.Clone(d.Resources.Devices), l.Resources.Devices...)
}

// completeNamespaces adds those that a container has by default. nerdctl's --net=host
// takes a namespace away from a spec that has none: its annotation tells.
func completeNamespaces(s *specs.Spec, defaults []specs.LinuxNamespace) []specs.LinuxNamespace {
	out := s.Linux.Namespaces
	var networks []string
	_ = json.Unmarshal([]byte(s.Annotations[annotationNerdctlNetworks]), &networks) // no list asks for nothing
	for _, n := range defaults {
		host := n.Type == specs.NetworkNamespace && slices.Equal(networks, []string{"host"})
		if !host && !hasNamespace(s.Linux, n.Type) {
			out = append(out, n)
		}
	}
	return out
}

// completeHostname gives a container of nerdctl's the name that it has on Linux.
func completeHostname(s *specs.Spec, id string) {
	switch {
	case s.Hostname != "":
	case s.Annotations[annotationNerdctlHostname] != "":
		s.Hostname = s.Annotations[annotationNerdctlHostname]
	case s.Annotations[annotationNerdctlName] != "":
		s.Hostname = id[:min(len(id), nerdctlIDLength)]
	}
}

func isMounted(list []specs.Mount, path string) bool {
	return slices.ContainsFunc(list, func(m specs.Mount) bool { return filepath.Clean(m.Destination) == path })
}

// withoutLinuxHooks returns the hooks without nerdctl's own.
func withoutLinuxHooks(h *specs.Hooks) *specs.Hooks {
	if h == nil {
		return nil
	}
	out := *h
	for _, list := range []*[]specs.Hook{&out.Prestart, &out.CreateRuntime, &out.CreateContainer, &out.StartContainer, &out.Poststart, &out.Poststop} { //nolint:staticcheck // prestart is deprecated, not gone
		*list = slices.DeleteFunc(slices.Clone(*list), onlyOnLinux)
	}
	return &out
}

// onlyOnLinux tells a hook that works on Linux only: nerdctl's, `nerdctl … internal oci-hook
// EVENT`, which calls CNI plugins, and fails where it may not make the directory of their
// configuration. On macOS nerdctl itself refuses the networks that would need it. Other
// hooks are programs that somebody put there for this host: they run.
func onlyOnLinux(h specs.Hook) bool {
	i := slices.Index(h.Args, "internal")
	return i >= 0 && i+1 < len(h.Args) && h.Args[i+1] == "oci-hook"
}

// Hooks returns the hooks of a bundle's config.json that run on the host, and its
// annotations, for who undoes a container whose shim is gone.
func Hooks(config []byte) (specs.Hooks, map[string]string, error) {
	s, err := parse(config)
	if err != nil || s.Hooks == nil {
		return specs.Hooks{}, nil, err
	}
	if isForeign(s) {
		s.Hooks = withoutLinuxHooks(s.Hooks)
	}
	return *s.Hooks, s.Annotations, nil
}
