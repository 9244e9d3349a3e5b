package vmm

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Validate checks what holds for every driver and needs no look at the host. Its errors
// name the machine.
func (cfg Config) Validate() error {
	switch {
	case cfg.CPUs < 1 || cfg.CPUs > 255:
		return fmt.Errorf("machine %s: %d CPUs", cfg.Name, cfg.CPUs)
	case cfg.Memory < 1<<20 || cfg.Memory%(1<<20) != 0:
		return fmt.Errorf("machine %s: memory of %d bytes is not a multiple of 1 MiB", cfg.Name, cfg.Memory)
	case !filepath.IsAbs(cfg.Dir):
		return fmt.Errorf("machine %s: directory %q is not absolute", cfg.Name, cfg.Dir)
	case cfg.Kernel == "" || cfg.Initrd == "":
		return fmt.Errorf("machine %s: no kernel or no initramfs is given", cfg.Name)
	}
	for _, p := range cfg.Cmdline {
		if p == "" || strings.ContainsAny(p, "\x00\n") {
			return fmt.Errorf("machine %s: kernel parameter %q", cfg.Name, p)
		}
	}
	seen := map[string]bool{}
	for _, d := range cfg.Disks {
		if err := checkName(d.ID, MaxDiskID); err != nil {
			return fmt.Errorf("machine %s: disk %s: ID %w", cfg.Name, d.Path, err)
		}
		if seen[d.ID] {
			return fmt.Errorf("machine %s: two disks are called %q", cfg.Name, d.ID)
		}
		seen[d.ID] = true
	}
	seen = map[string]bool{}
	for _, s := range cfg.Shares {
		if err := checkName(s.Tag, MaxShareTag); err != nil {
			return fmt.Errorf("machine %s: shared directory %s: tag %w", cfg.Name, s.Path, err)
		}
		if (s.Path == "") == (len(s.Files) == 0) {
			return fmt.Errorf("machine %s: share %s is to be a directory or files", cfg.Name, s.Tag)
		}
		if seen[s.Tag] {
			return fmt.Errorf("machine %s: two shared directories are called %q", cfg.Name, s.Tag)
		}
		seen[s.Tag] = true
	}
	seen = map[string]bool{}
	for _, n := range cfg.NICs {
		if err := checkNIC(n); err != nil {
			return fmt.Errorf("machine %s: network interface %s: %w", cfg.Name, n.MAC, err)
		}
		if seen[n.MAC.String()] {
			return fmt.Errorf("machine %s: two network interfaces have the address %s", cfg.Name, n.MAC)
		}
		seen[n.MAC.String()] = true
	}
	return nil
}

func checkNIC(n NIC) error {
	switch {
	case len(n.MAC) != 6 || n.MAC[0]&1 != 0:
		return errors.New("its address is not a unicast MAC address")
	case n.MTU < MinMTU || n.MTU > MaxMTU:
		return fmt.Errorf("its MTU of %d is not within %d and %d", n.MTU, MinMTU, MaxMTU)
	case (n.File == nil) != n.NAT || n.NAT && n.Tap:
		return errors.New("it is to have a file, or to be behind the VMM's NAT")
	}
	return nil
}

// checkName checks what drivers (QEMU's option parser) and the guest take for a name.
func checkName(name string, longest int) error {
	ok := len(name) >= 1 && len(name) <= longest
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r))
	}
	if !ok {
		return fmt.Errorf("%q is not 1 to %d characters of [A-Za-z0-9_.-]", name, longest)
	}
	return nil
}
