package agent

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// sysctlRoot is where the kernel's parameters are files.
const sysctlRoot = "/proc/sys"

// machineSysctls takes those parameters out of the spec that belong to no
// namespace of the container, and returns them: runc refuses them because they
// would change the host, but this kernel serves the container alone (or its pod).
func machineSysctls(s *specs.Spec) map[string]string {
	own := func(t specs.LinuxNamespaceType) bool {
		return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
	}
	machine := map[string]string{}
	for key, value := range s.Linux.Sysctl {
		if ns := sysctlNamespace(dotted(key)); ns == "" || !own(ns) {
			machine[key] = value
			delete(s.Linux.Sysctl, key)
		}
	}
	return machine
}

// sysctlNamespace is the kind of namespace that has a kernel parameter of its
// own, by namespaces(7) and what libcontainer sets in them; empty if none has.
func sysctlNamespace(key string) specs.LinuxNamespaceType {
	switch key {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
		"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
		return specs.IPCNamespace
	case "kernel.domainname", "kernel.hostname":
		return specs.UTSNamespace
	}
	switch top, _, _ := strings.Cut(key, "."); {
	case top == "net":
		return specs.NetworkNamespace
	case top == "user":
		return specs.UserNamespace
	case strings.HasPrefix(key, "fs.mqueue."):
		return specs.IPCNamespace
	}
	return ""
}

// dotted brings a name to the form with dots, sysctl(8): where the first
// separator is a slash, slashes separate and dots belong to the names.
func dotted(key string) string {
	if i := strings.IndexAny(key, "./"); i < 0 || key[i] == '.' {
		return key
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}

// setSysctls sets kernel parameters of the machine.
func setSysctls(root string, params map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(params)) {
		value := params[key]
		// In the dotted form a slash stands for a dot within a name.
		parts := strings.Split(dotted(key), ".")
		for i, p := range parts {
			parts[i] = strings.ReplaceAll(p, "/", ".")
			if p == "" || parts[i] == ".." || parts[i] == "." || strings.ContainsRune(p, 0) {
				return invalid("sysctl %q is no name of a kernel parameter", key)
			}
		}
		f, err := os.OpenFile(filepath.Join(root, filepath.Join(parts...)), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return invalid("sysctl %s: the machine's kernel has no such parameter", key)
		}
		if err == nil {
			_, err = f.WriteString(value)
			_ = f.Close()
		}
		if err != nil {
			return invalid("sysctl %s: set it to %q in the machine: %w", key, value, err)
		}
	}
	return nil
}
