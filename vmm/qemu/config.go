package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/applevm/applevm/vmm"
)

const (
	archAMD64 = "amd64"
	archARM64 = "arm64"
)

// emulators are the QEMU programs by architecture, and the Debian packages that
// have them.
var emulators = map[string]struct{ binary, pkg string }{
	archAMD64: {"qemu-system-x86_64", "qemu-system-x86"},
	archARM64: {"qemu-system-aarch64", "qemu-system-arm"},
}

// Emulator returns the QEMU program for an architecture, as Go names it, and the
// Debian package that has it; false if there is none that we use.
func Emulator(arch string) (binary, pkg string, ok bool) {
	e, ok := emulators[arch]
	return e.binary, e.pkg, ok
}

// validate checks what needs no look at the host.
func validate(cfg vmm.Config) error {
	if cfg.Restore != "" {
		return fmt.Errorf("machine %s: QEMU cannot restore machines with these devices", cfg.Name)
	}
	if emulators[cfg.Arch].binary == "" {
		return fmt.Errorf("machine %s: architecture %q is neither amd64 nor arm64", cfg.Name, cfg.Arch)
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.Root != nil && slices.ContainsFunc(cfg.NICs, func(n vmm.NIC) bool { return n.NAT }) {
		return fmt.Errorf("machine %s: QEMU's NAT needs the host's resolv.conf, which it has not with another root directory", cfg.Name)
	}
	if len(cfg.Disks)+len(cfg.Shares)+len(cfg.NICs) > maxDevices {
		return fmt.Errorf("machine %s: %d disks, %d shared directories and %d network interfaces, but at most %d fit in all",
			cfg.Name, len(cfg.Disks), len(cfg.Shares), len(cfg.NICs), maxDevices)
	}
	return nil
}

// checkFiles looks for what would make QEMU fail, in order to say it better.
func checkFiles(cfg vmm.Config) error {
	if fi, err := os.Stat(cfg.Dir); err != nil || !fi.IsDir() {
		return fmt.Errorf("machine directory %s: %w", cfg.Dir, orNotDir(err))
	}
	if err := checkKernel(cfg.Kernel, cfg.Arch); err != nil {
		return err
	}
	if _, err := checkFile("guest initramfs", cfg.Initrd, os.O_RDONLY); err != nil {
		return err
	}
	for _, d := range cfg.Disks {
		flags := os.O_RDWR
		if d.ReadOnly {
			flags = os.O_RDONLY
		}
		fi, err := checkFile("disk "+d.ID, d.Path, flags)
		if err != nil {
			return err
		}
		if fi.Size() == 0 || fi.Size()%512 != 0 {
			return fmt.Errorf("disk %s: %s has %d bytes, which is no multiple of 512", d.ID, d.Path, fi.Size())
		}
	}
	return nil
}

func orNotDir(err error) error {
	if err == nil {
		return errors.New("not a directory")
	}
	return err
}

// checkFile opens path as QEMU will. what names it in the error.
func checkFile(what, path string, flags int) (os.FileInfo, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %s is not a regular file", what, path)
	}
	return fi, nil
}

// checkKernel looks at the file's first bytes: an ELF header for amd64, and for
// arm64 the magic number of Documentation/arm64/booting.rst.
func checkKernel(path, arch string) error {
	if _, err := checkFile("guest kernel", path, os.O_RDONLY); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("guest kernel: %w", err)
	}
	defer f.Close()
	head := make([]byte, 64)
	n, _ := f.ReadAt(head, 0)
	head = head[:n]
	switch {
	case arch == archAMD64 && !bytes.HasPrefix(head, []byte("\x7fELF\x02")):
		return fmt.Errorf("guest kernel: %s is not an uncompressed ELF vmlinux for amd64", path)
	case arch == archARM64 && (n < 60 || string(head[56:60]) != "ARMd"):
		return fmt.Errorf("guest kernel: %s is not an uncompressed Image for arm64", path)
	}
	return nil
}

// hostArch is the architecture for an empty Config.Arch.
func hostArch() string { return runtime.GOARCH }
