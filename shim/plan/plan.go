// Package plan decides what machine a container gets and what its guest is
// asked for. It holds pure functions: they start nothing and write nothing, so
// that every decision can be tested with a table.
package plan

import (
	"io/fs"
	"slices"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/config"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/network/lan"
	"github.com/applevm/applevm/shim/sockets"
	"github.com/applevm/applevm/vmm"
)

// Input is all that the plan depends on.
type Input struct {
	// Namespace and ID name the container.
	Namespace, ID string
	// Bundle is the directory of the container's bundle.
	Bundle string
	// Spec is the bundle's config.json.
	Spec []byte
	// Rootfs is what the container's root file system is made of (see FindRootfs).
	Rootfs Rootfs
	// Machine holds the configured defaults.
	Machine config.Machine
	// Network holds the configured defaults.
	Network config.Network
	// Wish is the size that the runtime's options ask for.
	Wish Size
	// Boot is what the machine boots.
	Boot Boot
	// Host is what the host has.
	Host Host
	// Translator is what the driver says of the host's (TranslatorOf).
	Translator Translator
	// Stat looks at a file of the host, following symbolic links (os.Stat).
	Stat func(name string) (fs.FileInfo, error)
	// NAT says that the driver has the network "nat" (HasNAT).
	NAT bool
	// Submounts, if it is not nil, lists the mount points below a directory (SubmountsOf).
	Submounts func(dir string) ([]string, error)
	// IsEmpty tells whether a directory of the host has nothing in it (IsEmpty).
	IsEmpty func(dir string) bool
	// ReadFile reads a file of the host (os.ReadFile).
	ReadFile func(name string) ([]byte, error)
	// Join joins a network that containers share, by its name. It is called at most
	// once, and whoever asks for the plan closes what it returns.
	Join func(name string, m lan.Member) (*lan.Port, error)
	// Interfaces counts the interfaces in a network namespace of the host, by its
	// path (tapns.Count).
	Interfaces func(path string) (int, error)
	// Tmpfs tells whether a directory of the host is a tmpfs, and its size in
	// bytes (Tmpfs).
	Tmpfs func(dir string) (int64, bool)
}

// Boot names what a machine boots.
type Boot struct {
	Kernel, Initrd string
	Cmdline        []string
}

// Host is what the host has to give.
type Host struct {
	// CPUs is the number of its processors; 0 if it is not known.
	CPUs int
	// DefaultCPUs is the number of virtual CPUs where nobody asked for one.
	DefaultCPUs int
	// Memory is the host's whole memory in bytes; 0 if it is not known.
	Memory int64
	// Name is the host's name, for a container that asks for it.
	Name string
}

// Plan is what is to be done for one container.
type Plan struct {
	// Machine lacks only Dir and the files of its NICs.
	Machine vmm.Config
	// Network is what the machine's NIC, if any, is connected to.
	Network Network
	// RootMount, if set, is to be mounted at the bundle's RootDir while the machine
	// starts. It may be unmounted then.
	RootMount *types.Mount
	// Limits are the container's, as far as they bear on the machine.
	Limits Limits
	// Container lacks only files and the clock, which are taken when the guest
	// is asked.
	Container *guestv1.ContainerOptions
	// Sockets are those of the host that the guest may connect to, by their numbers.
	Sockets []string
	// PublishedSockets appear on the host.
	PublishedSockets []sockets.Publication
	// CopiesUp says that the guest fills volumes, which may take long.
	CopiesUp bool
	// FileEvents says that processes hear what the host does to files that they watch.
	FileEvents bool
	// Files are copied into the container when the hooks have run: some are
	// written by them.
	Files []File
	// Hooks run on the host.
	Hooks specs.Hooks
	// Annotations are the spec's, for the state that hooks are given.
	Annotations map[string]string
	// Warnings are for the log: what the spec asks for and does not get.
	Warnings []string
}

// File is a file of the host that the container gets a copy of, or one made for it.
type File struct {
	// Source is the file on the host, Destination its absolute path in the container.
	Source, Destination string
	// Generated files have no source but Content.
	Generated bool
	Content   string
	// ReadOnly files cannot be written to by the container.
	ReadOnly bool
}

// New makes the plan, or says in one sentence why there is none: an
// errdefs.ErrInvalidArgument for what can never be, an errdefs.ErrNotImplemented
// for what is not built yet.
func New(in Input) (*Plan, error) {
	spec, err := parse(in.Spec)
	if err != nil {
		return nil, err
	}
	foreign := isForeign(spec)
	if foreign {
		if err := complete(spec, in.Namespace, in.ID); err != nil {
			return nil, err
		}
	}
	p := &Plan{Annotations: spec.Annotations}
	if p.Limits, err = limitsOf(spec.Linux.Resources); err != nil {
		return nil, err
	}
	size, warnings, err := machineSize(in, p.Limits, spec.Annotations)
	if err != nil {
		return nil, err
	}
	p.Warnings = warnings
	p.Machine = machine(in, size)
	if p.Machine.Nested, err = nested(spec); err != nil {
		return nil, err
	}
	rootfs, err := p.root(in, spec.Root)
	if err != nil {
		return nil, err
	}
	if p.Hooks, err = hostHooks(spec.Hooks); err != nil {
		return nil, err
	}
	m, err := mounts(spec.Mounts, volumes(spec.Annotations), in)
	if err != nil {
		return nil, err
	}
	p.Machine.Shares = append(p.Machine.Shares, m.shares...)
	p.Machine.Disks = append(p.Machine.Disks, m.disks...)
	p.Warnings = append(p.Warnings, submountWarnings(m.shares, in.Submounts)...)
	p.CopiesUp, p.Sockets = m.copiesUp, m.sockets
	if p.FileEvents, err = fileEvents(spec.Annotations, m.guest, in.Machine.FileEvents); err != nil {
		return nil, err
	}
	if p.PublishedSockets, err = publishedSockets(spec.Annotations); err != nil {
		return nil, err
	}
	if p.Network, err = network(spec, in); err != nil {
		return nil, err
	}
	p.Machine.NICs = p.Network.nics()
	etc := p.Network.etcFiles(hostname(spec, in), in.ReadFile, foreign)
	p.Files = append(m.files, slices.DeleteFunc(etc, func(f File) bool { return isMounted(spec.Mounts, f.Destination) })...)
	guest, warnings, err := guestSpec(spec, in, m.guest, p.Machine.CPUs)
	if err != nil {
		return nil, err
	}
	p.Warnings = append(p.Warnings, warnings...)
	p.Container = &guestv1.ContainerOptions{Spec: guest, Rootfs: rootfs, Interfaces: p.Network.interfaces(slices.ContainsFunc(p.Files, isOwnResolv))}
	if p.Container.Translator, err = translator(spec.Annotations, in.Machine, in.Translator); err != nil {
		return nil, err
	}
	p.Machine.Translator = p.Container.GetTranslator().GetShare() != ""
	return p, nil
}
