package plan

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
)

// maxHostname is the longest label of a host name, in bytes (RFC 1123, section
// 2.1, by RFC 1035); Linux itself takes 64.
const maxHostname = 63

// parse reads a bundle's config.json.
func parse(b []byte) (*specs.Spec, error) {
	if len(b) > api.MaxSpec {
		return nil, invalid("the container's spec has %d bytes, more than %d", len(b), api.MaxSpec)
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, invalid("the container's spec (config.json): %w", err)
	}
	switch {
	case s.Process == nil:
		return nil, invalid("the container's spec has no process")
	case s.Windows != nil || s.Solaris != nil || s.VM != nil || s.ZOS != nil || s.FreeBSD != nil:
		return nil, invalid("the container's spec is for another system than Linux")
	}
	return &s, nil
}

// hostHooks returns the hooks that run on the host. startContainer hooks are programs
// of the container's own and run in it (guestSpec); createContainer hooks would be
// programs of the host that run in the container's namespaces, in the machine.
func hostHooks(h *specs.Hooks) (specs.Hooks, error) {
	if h == nil {
		return specs.Hooks{}, nil
	}
	if len(h.CreateContainer) > 0 {
		return specs.Hooks{}, unsupported("the createContainer hook %s is not implemented: it would run a program of the host inside the machine",
			h.CreateContainer[0].Path)
	}
	return *h, nil
}

// guestSpec returns the spec that goes into the guest: free of the host's paths
// and of what only has a meaning on the host.
func guestSpec(s *specs.Spec, in Input, mounts []specs.Mount, cpus int) ([]byte, []string, error) {
	g := specs.Spec{
		Version:    s.Version,
		Root:       &specs.Root{Readonly: s.Root != nil && s.Root.Readonly}, // the guest sets the path
		Hostname:   hostname(s, in),
		Domainname: s.Domainname,
		Mounts:     mounts,
	}
	if s.Hooks != nil && len(s.Hooks.StartContainer) > 0 {
		g.Hooks = &specs.Hooks{StartContainer: s.Hooks.StartContainer}
	}
	var warnings []string
	var err error
	if g.Process, warnings = guestProcess(s.Process); len(g.Process.Args) == 0 {
		return nil, nil, invalid("the container's spec has no command (process.args)")
	}
	var more []string
	if g.Linux, more, err = guestLinux(s.Linux, cpus); err != nil {
		return nil, nil, err
	}
	b, err := json.Marshal(g)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the guest's spec: %w", err)
	}
	return b, append(warnings, more...), nil
}

// hostname is the container's.
func hostname(s *specs.Spec, in Input) string {
	switch {
	case s.Hostname != "":
		return s.Hostname
	case hasNamespace(s.Linux, specs.UTSNamespace):
		// With runc the container would get the host's name. The guest's kernel
		// has none, and the host's is none of its business.
		return in.ID[:min(len(in.ID), maxHostname)]
	}
	// It was asked for, though: the machine takes it.
	return in.Host.Name
}

// guestProcess drops the labels of security modules that the guest does not run.
func guestProcess(p *specs.Process) (*specs.Process, []string) {
	g := *p
	var warnings []string
	if g.ApparmorProfile != "" {
		warnings = append(warnings, fmt.Sprintf("the AppArmor profile %q has no effect in a machine", g.ApparmorProfile))
		g.ApparmorProfile = ""
	}
	if g.SelinuxLabel != "" {
		warnings = append(warnings, fmt.Sprintf("the SELinux label %q has no effect in a machine", g.SelinuxLabel))
		g.SelinuxLabel = ""
	}
	g.CommandLine = "" // Windows
	return &g, warnings
}

func guestLinux(l *specs.Linux, cpus int) (*specs.Linux, []string, error) {
	g := *l
	var warnings []string
	g.Namespaces = slices.Clone(l.Namespaces)
	for i, ns := range l.Namespaces {
		switch {
		case ns.Path == "":
		case ns.Type == specs.NetworkNamespace:
			g.Namespaces[i].Path = "" // what is in it comes to one of the guest's (network)
		default:
			return nil, nil, unsupported("joining the %s namespace %s is not implemented", ns.Type, ns.Path)
		}
	}
	if l.Seccomp != nil && l.Seccomp.ListenerPath != "" {
		return nil, nil, unsupported("the seccomp listener %s is not implemented", l.Seccomp.ListenerPath)
	}
	if len(l.NetDevices) > 0 {
		return nil, nil, unsupported("moving network devices of the host into a container is not implemented")
	}
	g.CgroupsPath = "" // the guest has its own tree
	var more []string
	var err error
	if g.Devices, more, err = devices(l); err != nil {
		return nil, nil, err
	}
	warnings = append(warnings, more...)
	if g.Resources, more, err = resources(l.Resources, cpus); err != nil {
		return nil, nil, err
	}
	warnings = append(warnings, more...)
	if p := l.MemoryPolicy; p != nil {
		warnings = append(warnings, fmt.Sprintf("the memory policy %s has no effect: a machine has one memory node", p.Mode))
		g.MemoryPolicy = nil
	}
	if p := l.Personality; p != nil && len(p.Flags) > 0 {
		warnings = append(warnings, "the flags of the personality have no effect: libcontainer applies none")
	}
	if g.MountLabel != "" {
		warnings = append(warnings, fmt.Sprintf("the SELinux mount label %q has no effect in a machine", g.MountLabel))
		g.MountLabel = ""
	}
	if g.IntelRdt != nil {
		warnings = append(warnings, "Intel RDT settings have no effect in a machine")
		g.IntelRdt = nil
	}
	return &g, warnings, nil
}

func hasNamespace(l *specs.Linux, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

// namespacePath is the path of the host's namespace of a kind that the container is
// to join; empty if it is to have one of its own, or the host's.
func namespacePath(l *specs.Linux, kind specs.LinuxNamespaceType) string {
	for _, n := range l.Namespaces {
		if n.Type == kind {
			return n.Path
		}
	}
	return ""
}

// Process returns the process of an exec as it goes into the guest, from the
// JSON that containerd hands over, and warnings for the log.
func Process(b []byte) ([]byte, []string, error) {
	if len(b) > api.MaxSpec {
		return nil, nil, invalid("the process's spec has %d bytes, more than %d", len(b), api.MaxSpec)
	}
	var p specs.Process
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, nil, invalid("the process's spec: %w", err)
	}
	if len(p.Args) == 0 {
		return nil, nil, invalid("the process's spec has no command (args)")
	}
	g, warnings := guestProcess(&p)
	out, err := json.Marshal(g)
	return out, warnings, err
}
