package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Kernel is a kernel that is ready to be booted, in the cache.
type Kernel struct {
	// Kind is KindOwn or KindDebian, Release what uname -r prints.
	Kind    string `json:"kind"`
	Release string `json:"release"`
	// Source names the version that it comes from, for instance "6.1.192-2".
	Source string `json:"source"`
	// VirtioMMIO is image.Image.VirtioMMIO.
	VirtioMMIO bool `json:"virtio_mmio"`

	dir string
}

// The kinds of kernel.
const (
	KindDebian = "debian"
	KindOwn    = "own"
	// KindAuto is the own kernel if it has been built, else Debian's.
	KindAuto = "auto"
)

// Names of the files of a kernel's directory in the cache.
const (
	kernelFile = "kernel"
	kernelInfo = "kernel.json"
	modulesDir = "modules"
	configFile = "config"
)

// Path is the uncompressed kernel's path.
func (k Kernel) Path() string { return filepath.Join(k.dir, kernelFile) }

// modules returns the kernel's modules as Dir of package modules is to have them; our own kernel has
// none.
func (k Kernel) modules() fs.FS { return os.DirFS(filepath.Join(k.dir, modulesDir)) }

func readKernel(dir string) (Kernel, error) {
	b, err := os.ReadFile(filepath.Join(dir, kernelInfo))
	if err != nil {
		return Kernel{}, err
	}
	k := Kernel{dir: dir}
	if err := json.Unmarshal(b, &k); err != nil {
		return Kernel{}, fmt.Errorf("%s in the cache is damaged, remove %s: %w", kernelInfo, dir, err)
	}
	return k, nil
}

func (k Kernel) write(dir string) error {
	b, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, kernelInfo), append(b, '\n'), 0o644)
}

// FindKernel returns the kernel of the given kind for arch; Debian's is fetched
// if need be, the own one must have been built by BuildKernel.
func FindKernel(ctx context.Context, arch, kind string) (Kernel, error) {
	if err := checkArch(arch); err != nil {
		return Kernel{}, err
	}
	switch kind {
	case KindDebian:
		return debianKernel(ctx, arch)
	case KindAuto, KindOwn:
		k, ok, err := builtKernel(arch)
		switch {
		case err != nil:
			return Kernel{}, err
		case ok:
			return k, nil
		case kind == KindOwn:
			return Kernel{}, fmt.Errorf("no kernel of our own for %s in the cache: build it with `make kernel`, or use Debian's with -kernel debian", arch)
		}
		return debianKernel(ctx, arch)
	default:
		return Kernel{}, fmt.Errorf("kernel %q: use auto, own or debian", kind)
	}
}

func checkArch(arch string) error {
	if arch != "amd64" && arch != "arm64" {
		return fmt.Errorf("architecture %q: use amd64 or arm64", arch)
	}
	return nil
}
