// Package build makes guest images: it takes a kernel, puts the given init and
// the modules that the kernel needs into an initramfs, and describes the whole
// for package image.
package build

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/applevm/applevm/guest/image"
)

// Spec says what to build.
type Spec struct {
	// Arch is the guest's architecture: "amd64" or "arm64".
	Arch string
	// Kernel is KindAuto, KindOwn or KindDebian; empty is KindAuto.
	Kernel string
	// Init is the path of a static binary, which becomes /init.
	Init string
	// Out is the directory to write into; it is made if missing.
	Out string
}

// Names of the files in a guest image.
const (
	outKernel = "kernel"
	outInitrd = "initramfs"
)

// cmdline holds the kernel parameters for every image. Without "quiet" the
// console is the slowest part of a boot; errors and panics are printed all the
// same. A guest that panics ends (panic=-1 reboots, which ends the VMM) instead
// of hanging.
var cmdline = []string{"quiet", "panic=-1"}

// debianCmdline is added for Debian's kernel, which would otherwise test its
// ciphers at each boot, for 300 ms under emulation.
var debianCmdline = []string{"cryptomgr.notests"}

// Build makes the image that spec describes. The same inputs give the same
// bytes. Files that are already in spec.Out are replaced, each at once.
func Build(ctx context.Context, spec Spec) (image.Image, error) {
	if err := checkArch(spec.Arch); err != nil {
		return image.Image{}, err
	}
	init, err := readInit(spec.Init, spec.Arch)
	if err != nil {
		return image.Image{}, err
	}
	if spec.Kernel == "" {
		spec.Kernel = KindAuto
	}
	k, err := FindKernel(ctx, spec.Arch, spec.Kernel)
	if err != nil {
		return image.Image{}, err
	}
	if err := os.MkdirAll(spec.Out, 0o755); err != nil {
		return image.Image{}, fmt.Errorf("guest image: %w", err)
	}
	img := image.Image{
		Arch: spec.Arch, Kernel: outKernel, Initrd: outInitrd,
		Cmdline: cmdline, Release: k.Release, KernelKind: k.Kind, VirtioMMIO: k.VirtioMMIO,
	}
	if k.Kind == KindDebian {
		img.Cmdline = append(img.Cmdline[:len(img.Cmdline):len(img.Cmdline)], debianCmdline...)
	}
	desc, err := json.MarshalIndent(img, "", "  ")
	if err != nil {
		return image.Image{}, err
	}
	// The description goes last: with it the image is complete.
	err = errors.Join(
		replace(spec.Out, outKernel, func(w io.Writer) error { return copyFile(w, k.Path()) }),
		replace(spec.Out, outInitrd, func(w io.Writer) error { return writeInitramfs(w, init, k.modules()) }),
	)
	if err == nil {
		err = replace(spec.Out, image.File, func(w io.Writer) error {
			_, err := w.Write(append(desc, '\n'))
			return err
		})
	}
	if err != nil {
		return image.Image{}, fmt.Errorf("guest image: %w", err)
	}
	return image.OpenFor(spec.Out, spec.Arch)
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// readInit reads the init binary and checks that it can run as one: there is no
// dynamic linker in the initramfs.
func readInit(path, arch string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("init for the guest image: %w", err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("init %s is no Linux program: %w", path, err)
	}
	if f.Machine != machines[arch] {
		return nil, fmt.Errorf("init %s is for %v, the image for %s", path, f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("init %s is linked dynamically: build it statically, the guest has no libraries", path)
		}
	}
	return b, nil
}

// replace writes a file and puts it in the place of dir's file of that name.
func replace(dir, name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := write(f); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(dir, name), err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
