package build

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing/fstest"

	"github.com/applevm/applevm/guest/image/internal/bzimage"
	"github.com/applevm/applevm/guest/image/internal/cache"
	"github.com/applevm/applevm/guest/image/internal/debian"
	"github.com/applevm/applevm/guest/image/internal/kmod"
	"github.com/applevm/applevm/guest/modules"
)

// debianRecipe is the version of what debianKernel makes of a package; change
// it with the modules or their treatment.
const debianRecipe = "3"

// wanted are the modules that a guest needs, and no more: each costs some
// milliseconds at each boot.
var wanted = []string{
	"virtio_mmio", "virtio_pci",
	"virtio_blk", "ext4", "crc32c_generic", "overlay", // root file systems
	"vmw_vsock_virtio_transport", // the agent's connection
	"virtio_net",
	"virtio_rng", "virtio_balloon",
	"virtiofs", "erofs",
	"tun", "loop", // devices that containers ask for
}

// wantedLater are modules that a guest loads only where it needs them, by the directories that
// package modules names.
var wantedLater = map[string][]string{modules.Binfmt: {"binfmt_misc"}}

// debianKernel returns Debian's newest cloud kernel.
func debianKernel(ctx context.Context, arch string) (Kernel, error) {
	pkg, err := debian.ResolveDependency(ctx, arch, "linux-image-cloud-"+arch, "linux-image-")
	if err != nil {
		return Kernel{}, fmt.Errorf("find Debian's kernel for %s: %w", arch, err)
	}
	name := fmt.Sprintf("kernel/debian-%s-%s-v%s", arch, pkg.SHA256[:16], debianRecipe)
	dir, err := cache.Make(ctx, name, func(dir string) error {
		file, err := pkg.Fetch(ctx)
		if err != nil {
			return err
		}
		return unpackKernel(file, dir, arch, pkg.Version())
	})
	if err != nil {
		return Kernel{}, fmt.Errorf("prepare Debian's kernel for %s: %w", arch, err)
	}
	return readKernel(dir)
}

// unpackKernel writes the kernel and the modules that a package holds into dir.
func unpackKernel(deb, dir, arch, version string) error {
	f, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer f.Close()
	files, err := kernelFiles(f)
	if err != nil {
		return err
	}
	boot, err := fs.Glob(files, "boot/vmlinuz-*")
	if err != nil || len(boot) != 1 {
		return fmt.Errorf("package %s holds %d kernels", filepath.Base(deb), len(boot))
	}
	k := Kernel{
		Kind:    KindDebian,
		Release: strings.TrimPrefix(path.Base(boot[0]), "vmlinuz-"),
		Source:  version,
	}
	config, err := fs.ReadFile(files, "boot/config-"+k.Release)
	if err != nil {
		return err
	}
	k.VirtioMMIO = arch == "arm64" || strings.Contains(string(config), "\nCONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n")
	image, err := uncompressed(files[boot[0]].Data, arch)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, kernelFile), image, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, configFile), config, 0o644); err != nil {
		return err
	}
	tree, err := fs.Sub(files, "lib/modules/"+k.Release)
	if err != nil {
		return err
	}
	if err := writeModules(tree, filepath.Join(dir, modulesDir), wanted); err != nil {
		return err
	}
	for name, mods := range wantedLater {
		if err := writeModules(tree, filepath.Join(dir, modulesDir, name), mods); err != nil {
			return err
		}
	}
	return k.write(dir)
}

// kernelFiles reads those files of a package that a guest may need into memory.
func kernelFiles(deb io.Reader) (fstest.MapFS, error) {
	tr, err := debian.Data(deb)
	if err != nil {
		return nil, err
	}
	files := fstest.MapFS{}
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		if h.Typeflag != tar.TypeReg || !strings.HasPrefix(name, "boot/") && !strings.HasPrefix(name, "lib/modules/") {
			continue
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return nil, err
		}
		files[name] = &fstest.MapFile{Data: b, Mode: 0o644}
	}
}

// uncompressed returns what a machine boots for the content of a vmlinuz file.
func uncompressed(vmlinuz []byte, arch string) ([]byte, error) {
	if arch == "amd64" {
		return bzimage.Vmlinux(vmlinuz)
	}
	return vmlinuz, checkImage(vmlinuz)
}

// checkImage checks that b is an uncompressed arm64 Image, by the header in
// Documentation/arm64/booting.rst.
func checkImage(b []byte) error {
	const magic, offset = 0x644d5241, 56 // "ARM\x64"
	if len(b) < offset+8 || binary.LittleEndian.Uint32(b[offset:]) != magic {
		return errors.New("not an uncompressed arm64 Image: Debian's way of building the kernel has changed")
	}
	return nil
}

func writeModules(tree fs.FS, dir string, names []string) error {
	mods, err := kmod.Resolve(tree, names)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i, m := range mods {
		data, err := kmod.Strip(m.Data)
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", m.Path, err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d-%s.ko", i, m.Name)), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
