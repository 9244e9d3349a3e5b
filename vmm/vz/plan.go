package vz

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/applevm/applevm/vmm"
)

// minMTU is the shortest packet length that the framework takes for an interface
// (VZFileHandleNetworkDeviceAttachment.maximumTransmissionUnit). A guest that is told
// less by its agent sends less.
const minMTU = 1500

// plan is a machine in the framework's terms.
type plan struct {
	vmm.Config
	// cmdline is the kernel's command line.
	cmdline string
	// shares are directories, one for each of Config.Shares.
	shares []share
}

// share is a directory that is shared by one device.
type share struct {
	tag, dir string
	readOnly bool
	// links are made in dir, by name, before it is shared: hard links to files, which are
	// thereby shared alone and live in both directions. They must be on dir's volume.
	links []string
}

// newPlan checks a configuration and translates it. arch is the host's architecture:
// the framework emulates none.
func newPlan(cfg vmm.Config, arch string) (*plan, error) {
	fail := func(format string, args ...any) (*plan, error) {
		return nil, fmt.Errorf("machine %s: "+format, append([]any{cfg.Name}, args...)...)
	}
	if cfg.Arch != "" && cfg.Arch != arch {
		return fail("a guest for %s cannot run on this Mac, which is %s: use an image for linux/%s", cfg.Arch, arch, arch)
	}
	if cfg.NetNS != nil || cfg.Root != nil {
		return fail("there are no network namespaces and no root directories of processes on macOS")
	}
	for _, n := range cfg.NICs {
		if n.Tap {
			return fail("network interface %s: macOS has no tap devices", n.MAC)
		}
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p := &plan{Config: cfg}
	// The guest's console is a virtio console, which is there before the rest.
	p.cmdline = strings.Join(append([]string{"console=hvc0"}, cfg.Cmdline...), " ")
	for i, s := range cfg.Shares {
		sh := share{tag: s.Tag, dir: s.Path, readOnly: s.ReadOnly}
		if s.Path == "" {
			sh.dir, sh.links = filepath.Join(cfg.Dir, "files"+strconv.Itoa(i)), s.Files
		}
		p.shares = append(p.shares, sh)
	}
	return p, nil
}

// mtu is what an interface is set to.
func mtu(n vmm.NIC) int { return max(n.MTU, minMTU) }

// makeLinks makes the directories of files.
func (p *plan) makeLinks() error {
	for _, s := range p.shares {
		if s.links == nil {
			continue
		}
		if err := os.Mkdir(s.dir, 0o700); err != nil {
			return fmt.Errorf("machine %s: %w", p.Name, err)
		}
		for i, f := range s.links {
			if err := os.Link(f, filepath.Join(s.dir, strconv.Itoa(i))); err != nil {
				return fmt.Errorf("machine %s: share the file %s alone: %w; it must be on the volume of %s, or its directory be mounted instead",
					p.Name, f, err, p.Dir)
			}
		}
	}
	return nil
}

// removeLinks removes them; the files stay.
func (p *plan) removeLinks() error {
	for _, s := range p.shares {
		if s.links == nil {
			continue
		}
		if err := os.RemoveAll(s.dir); err != nil {
			return err
		}
	}
	return nil
}
