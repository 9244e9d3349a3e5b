// Package image opens a guest image: the kernel and the initramfs that a
// machine boots, and what has to be known about them.
//
// A guest image is a directory with three files: the kernel, the initramfs,
// and image.json, which names them. Package build makes one. This package is
// for those who only boot it, and imports nothing that building needs.
package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// File is the name of the description in an image's directory.
const File = "image.json"

// ErrInvalid is returned, wrapped with the details, for an image.json that does
// not describe a guest image.
var ErrInvalid = errors.New("invalid guest image")

// Image describes a guest image.
type Image struct {
	// Arch is the guest's architecture as Go calls it: "amd64" or "arm64".
	Arch string `json:"arch"`
	// Kernel is the path of the uncompressed kernel: an ELF vmlinux with a PVH
	// entry for amd64, an Image for arm64.
	Kernel string `json:"kernel"`
	// Initrd is the path of the initramfs.
	Initrd string `json:"initrd"`
	// Cmdline holds the kernel parameters that this image wants on any machine.
	// The console and what the VMM's devices need are for the driver to add.
	Cmdline []string `json:"cmdline,omitempty"`
	// Release is the kernel's release as uname -r prints it.
	Release string `json:"release"`
	// KernelKind is "own" for the kernel built from guest/kernel, "debian" for
	// Debian's cloud kernel.
	KernelKind string `json:"kernel_kind"`
	// VirtioMMIO tells whether the kernel finds virtio-mmio devices that
	// ACPI does not describe: by virtio_mmio.device= parameters on amd64
	// (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES), by the device tree on arm64. Debian's
	// amd64 kernel does not: it needs devices on PCI, or ACPI.
	VirtioMMIO bool `json:"virtio_mmio"`
}

// Open reads dir's image.json. The paths in it are relative to dir; those in
// the result are absolute, and the files they name exist. Errors say what is
// missing and how to build it; ErrInvalid is in those about image.json itself.
func Open(dir string) (Image, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	path := filepath.Join(dir, File)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, fmt.Errorf("no guest image in %s: build one with `make guest` or set guest.dir in the configuration: %w", dir, err)
	}
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	var img Image
	if err := json.Unmarshal(b, &img); err != nil {
		return Image{}, fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	if img.Arch != "amd64" && img.Arch != "arm64" {
		return Image{}, fmt.Errorf("%w: %s: arch is %q, not \"amd64\" or \"arm64\"", ErrInvalid, path, img.Arch)
	}
	for _, f := range []struct {
		what string
		path *string
	}{{"kernel", &img.Kernel}, {"initrd", &img.Initrd}} {
		// A path out of the directory would make the image change with files
		// that nobody takes for a part of it.
		if !filepath.IsLocal(*f.path) {
			return Image{}, fmt.Errorf("%w: %s: %s is %q, not a file in the image's directory", ErrInvalid, path, f.what, *f.path)
		}
		*f.path = filepath.Join(dir, *f.path)
		fi, err := os.Stat(*f.path)
		if err != nil {
			return Image{}, fmt.Errorf("guest image in %s lacks its %s: build it anew with `make guest`: %w", dir, f.what, err)
		}
		if !fi.Mode().IsRegular() || fi.Size() == 0 {
			return Image{}, fmt.Errorf("guest image in %s: %s %s is empty or no regular file: build the image anew with `make guest`", dir, f.what, *f.path)
		}
	}
	return img, nil
}

// OpenFor is Open for a guest of the given architecture; an image for another
// one is an error.
func OpenFor(dir, arch string) (Image, error) {
	img, err := Open(dir)
	if err != nil {
		return Image{}, err
	}
	if img.Arch != arch {
		return Image{}, fmt.Errorf("guest image in %s is for %s, but the machine is %s: build one with `go run ./guest/image/mkimage -arch %s -out %s`", dir, img.Arch, arch, arch, dir)
	}
	return img, nil
}
