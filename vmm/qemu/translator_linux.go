package qemu

import (
	"debug/elf"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/applevm/applevm/vmm"
)

var _ vmm.Translator = (*driver)(nil)

// userEmulators are QEMU's user mode emulators for the other architecture, by the host's, as
// Debian and others call those that need no libraries.
var userEmulators = map[string]struct{ arch, name string }{
	archAMD64: {archARM64, "qemu-aarch64-static"},
	archARM64: {archAMD64, "qemu-x86_64-static"},
}

// Translates implements vmm.Translator with QEMU's user mode emulation.
func (d *driver) Translates() (vmm.Translation, error) {
	e := userEmulators[hostArch()]
	t := vmm.Translation{Arch: e.arch, Program: "0"} // of a share of files
	if _, err := userEmulator(); err != nil {
		return t, noEmulator(e.name)
	}
	return t, nil
}

// noEmulator is a vmm.ErrNoTranslator.
type noEmulator string

func (e noEmulator) Error() string {
	return "install " + string(e) + " (Debian: apt-get install qemu-user-static)"
}

func (noEmulator) Unwrap() error { return vmm.ErrNoTranslator }

// userEmulator finds the emulator: a program without an interpreter of its own, since containers
// do not have the host's libraries.
func userEmulator() (string, error) {
	path, err := exec.LookPath(userEmulators[hostArch()].name)
	if err != nil {
		return "", err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%s needs libraries", path)
		}
	}
	return path, nil
}

// addTranslator adds the share that cfg asks for.
func addTranslator(cfg *vmm.Config) error {
	if !cfg.Translator {
		return nil
	}
	path, err := userEmulator()
	if err != nil {
		return fmt.Errorf("machine %s: %w: %w", cfg.Name, noEmulator(userEmulators[hostArch()].name), err)
	}
	cfg.Shares = append(cfg.Shares[:len(cfg.Shares):len(cfg.Shares)], vmm.Share{Tag: vmm.TranslatorTag, Files: []string{path}, ReadOnly: true})
	return nil
}
