package qemu

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/applevm/applevm/vmm"
)

// Options configure the driver; config.QEMU has the same fields.
type Options struct {
	// Binary is QEMU for the host's architecture; empty finds it in PATH.
	Binary string
	// Accel is "auto" or empty (KVM if a trial boot shows that it works, else
	// TCG), "kvm" or "tcg".
	Accel string
	// CacheDir keeps what was found out about the host; empty is the user's
	// cache directory.
	CacheDir string
	// ShareServer has another vhost-user server serve a share, to compare ours with: it
	// returns QEMU's end of a connection to it. nil serves shares in this process.
	ShareServer func(vmm.Share) (*os.File, error)
}

type driver struct {
	opts  Options
	cache cache
}

// New returns the driver. QEMU itself is looked for when a machine is started.
func New(opts Options) (vmm.Driver, error) {
	switch opts.Accel {
	case "", "auto", "kvm", "tcg":
	default:
		return nil, fmt.Errorf("qemu accelerator %q: use \"auto\", \"kvm\" or \"tcg\"", opts.Accel)
	}
	if opts.CacheDir == "" {
		opts.CacheDir = defaultCacheDir()
	}
	return &driver{opts: opts, cache: cache{opts.CacheDir}}, nil
}

// Name implements vmm.Driver.
func (d *driver) Name() string { return "qemu" }

// New implements vmm.Driver.
func (d *driver) New(cfg vmm.Config) (vmm.Machine, error) {
	if cfg.Arch == "" {
		cfg.Arch = hostArch()
	}
	if err := addTranslator(&cfg); err != nil {
		return nil, err
	}
	if err := validate(cfg); err != nil {
		return nil, err
	}
	return newMachine(d, cfg), nil
}

// findBinary returns QEMU's path for the architecture.
func (d *driver) findBinary(arch string) (string, error) {
	e := emulators[arch]
	name := e.binary
	if d.opts.Binary != "" && arch == hostArch() {
		name = d.opts.Binary
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find QEMU: %w; install it with `make deps` or `apt install %s`", err, e.pkg)
	}
	return path, nil
}
