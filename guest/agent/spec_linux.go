package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/guest/api"
)

// parseSpec reads a container's OCI spec and makes it one that can run in the
// guest. What is dropped on the way is named in warnings.
func parseSpec(b []byte, id string) (s *specs.Spec, warnings []string, err error) {
	if len(b) > api.MaxSpec {
		return nil, nil, invalid("the spec is %d bytes long, more than %d", len(b), api.MaxSpec)
	}
	s = new(specs.Spec)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, nil, invalid("the spec is no valid JSON: %w", err)
	}
	if s.Linux == nil {
		return nil, nil, invalid("the spec has no linux section")
	}
	if s.Root == nil {
		s.Root = new(specs.Root)
	}
	if err := checkProcess(s.Process); err != nil {
		return nil, nil, err
	}
	warnings = dropLabels(s.Process)
	if s.Linux.MountLabel != "" {
		s.Linux.MountLabel = ""
		warnings = append(warnings, "the SELinux mount label is dropped")
	}
	for _, ns := range s.Linux.Namespaces {
		if ns.Path != "" {
			return nil, nil, invalid("%s namespace: %q is a path on the host, which the machine cannot join", ns.Type, ns.Path)
		}
	}
	for _, m := range s.Mounts {
		if m.Type != api.ShareMount && isBind(m) {
			return nil, nil, invalid("mount %s: the source %q is on the host, which the machine does not see", m.Destination, m.Source)
		}
	}
	if s.Linux.Seccomp != nil && s.Linux.Seccomp.ListenerPath != "" {
		return nil, nil, invalid("seccomp: the listener %q is on the host", s.Linux.Seccomp.ListenerPath)
	}
	if !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.MountNamespace }) {
		// The container's mounts must not become the agent's.
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace})
	}
	// All other hooks are the host's: they name programs of the host.
	if s.Hooks != nil {
		s.Hooks = &specs.Hooks{StartContainer: s.Hooks.StartContainer}
	}
	// A cgroup path is the host's too; in the guest the container's own is
	// directly below the root.
	s.Linux.CgroupsPath = "/" + id
	s.Linux.IntelRdt = nil
	if s.Process.OOMScoreAdj == nil {
		// Else the container would inherit that of the agent, which must not be killed.
		s.Process.OOMScoreAdj = new(int)
	}
	return s, warnings, nil
}

func isBind(m specs.Mount) bool {
	if m.Type == "bind" {
		return true
	}
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}

// processType is the end of the type URL that containerd gives a process spec
// (typeurl with prefix types.containerd.io; the number is the spec's major version).
const processType = "opencontainers/runtime-spec/1/Process"

// parseProcess reads the spec of an additional process.
func parseProcess(a *anypb.Any) (*specs.Process, []string, error) {
	if !strings.HasSuffix(a.GetTypeUrl(), processType) {
		return nil, nil, invalid("the process has type %q, not %s", a.GetTypeUrl(), processType)
	}
	if len(a.GetValue()) > api.MaxSpec {
		return nil, nil, invalid("the process is %d bytes long, more than %d", len(a.GetValue()), api.MaxSpec)
	}
	p := new(specs.Process)
	if err := json.Unmarshal(a.GetValue(), p); err != nil {
		return nil, nil, invalid("the process is no valid JSON: %w", err)
	}
	if err := checkProcess(p); err != nil {
		return nil, nil, err
	}
	return p, dropLabels(p), nil
}

// checkProcess refuses, in runc's words, what runc refuses.
func checkProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return invalid("process property must not be empty")
	case p.Cwd == "":
		return invalid("Cwd property must not be empty")
	case !filepath.IsAbs(p.Cwd):
		return invalid("Cwd must be an absolute path")
	case len(p.Args) == 0:
		return invalid("args must not be empty")
	}
	return nil
}

// dropLabels removes what needs a security module that the guest does not have.
func dropLabels(p *specs.Process) (warnings []string) {
	if p.ApparmorProfile != "" {
		warnings = append(warnings, fmt.Sprintf("the AppArmor profile %q is dropped", p.ApparmorProfile))
		p.ApparmorProfile = ""
	}
	if p.SelinuxLabel != "" {
		warnings = append(warnings, fmt.Sprintf("the SELinux label %q is dropped", p.SelinuxLabel))
		p.SelinuxLabel = ""
	}
	return warnings
}

// libcontainerConfig translates the spec of container id.
func libcontainerConfig(s *specs.Spec, id string) (*configs.Config, error) {
	return specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: id, Spec: s})
}

// libcontainerProcess translates a process of the spec; stdio is not in it.
func libcontainerProcess(p *specs.Process) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	if p.ConsoleSize != nil {
		lp.ConsoleWidth = uint16(min(p.ConsoleSize.Width, math.MaxUint16))
		lp.ConsoleHeight = uint16(min(p.ConsoleSize.Height, math.MaxUint16))
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
			Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		n, ok := rlimits[r.Type]
		if !ok {
			return nil, invalid("wrong rlimit value: %s", r.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: n, Hard: r.Hard, Soft: r.Soft})
	}
	affinity, err := configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	if err != nil {
		return nil, invalid("%w", err)
	}
	lp.CPUAffinity = machineCPUs(affinity)
	return lp, nil
}

// machineCPUs drops the CPUs of an affinity of which the machine has none: they
// are the host's.
func machineCPUs(a *configs.CPUAffinity) *configs.CPUAffinity {
	var have unix.CPUSet
	if a == nil || unix.SchedGetaffinity(0, &have) != nil {
		return a
	}
	some := func(asked *unix.CPUSet) *unix.CPUSet {
		if asked == nil {
			return nil
		}
		for i := range asked {
			if asked[i]&have[i] != 0 {
				return asked
			}
		}
		logrus.Warn("the CPU affinity of a process is dropped: the machine has none of its CPUs")
		return nil
	}
	return &configs.CPUAffinity{Initial: some(a.Initial), Final: some(a.Final)}
}

// setMachineNames gives the machine the names of a container without a UTS
// namespace of its own: it sees the machine's.
func setMachineNames(s *specs.Spec) error {
	if slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UTSNamespace }) {
		return nil
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return invalid("set the machine's host name to %q: %w", s.Hostname, err)
		}
	}
	if s.Domainname != "" {
		if err := unix.Setdomainname([]byte(s.Domainname)); err != nil {
			return invalid("set the machine's domain name to %q: %w", s.Domainname, err)
		}
	}
	s.Hostname, s.Domainname = "", ""
	return nil
}

// validID tells whether id may be a container's or an exec's name: it becomes a
// directory and a cgroup. The rules are containerd's (pkg/identifiers), of which
// libcontainer's are a superset.
func validID(id string) error {
	const maxLen = 76
	switch {
	case id == "":
		return errors.New("the ID is empty")
	case len(id) > maxLen:
		return fmt.Errorf("the ID is %d bytes long, more than %d", len(id), maxLen)
	case id == "." || id == "..":
		return fmt.Errorf("%q is no ID", id)
	}
	for _, c := range []byte(id) {
		if !strings.ContainsRune(diskIDChars, rune(c)) {
			return fmt.Errorf("the ID %q has a character other than A-Z a-z 0-9 _ . -", id)
		}
	}
	return nil
}
