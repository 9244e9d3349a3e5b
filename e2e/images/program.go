package images

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// unpack unpacks a Debian release's package, and all that it needs, without installing it: to dir/PACKAGE,
// which it returns.
func unpack(ctx context.Context, dir, release, pkg string) (string, error) {
	args := []string{"--variant=extract", "--quiet", "--include=" + pkg, release}
	tar, err := cached(ctx, pkg+"-"+release+".tar", strings.Join(args, "\x00"), func(_, out string) error {
		return mmdebstrap(ctx, append(args, out)...)
	})
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, pkg)
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", err
	}
	// Device nodes and owners, which only root could make, are not needed.
	out, err := exec.CommandContext(ctx, "tar", "-C", root, "--no-same-owner", "--exclude=./dev", "--exclude=./usr/share", "-xf", tar).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w: %s", pkg, err, bytes.TrimSpace(out))
	}
	return root, nil
}

// program returns the command of a program of a Debian release's package, unpacked and run with its
// own libraries. path is where it is in the package.
func program(ctx context.Context, dir, release, pkg, path string) ([]string, error) {
	root, err := unpack(ctx, dir, release, pkg)
	if err != nil {
		return nil, err
	}
	// Up to Debian 12 there are libraries in both directories.
	loader, err := only(filepath.Join(root, "lib", loaders), filepath.Join(root, "usr/lib", loaders))
	if err != nil {
		return nil, err
	}
	arch := filepath.Base(filepath.Dir(loader))
	return []string{loader, "--library-path", filepath.Join(root, "lib", arch) + ":" + filepath.Join(root, "usr/lib", arch), filepath.Join(root, path)}, nil
}

// loaders matches the program that loads others, in a directory of libraries.
const loaders = "*-linux-gnu/ld-linux-*.so.*"

// Sshd returns the command of OpenSSH's server, unpacked to dir. It is not the system's: where the
// package is installed, it serves.
func Sshd(ctx context.Context, dir string) ([]string, error) {
	return program(ctx, dir, "bookworm", "openssh-server", "usr/sbin/sshd")
}

// UserEmulator returns QEMU's user mode emulator for an architecture, as QEMU calls it: a program that needs
// no libraries, unpacked to dir.
func UserEmulator(ctx context.Context, dir, arch string) (string, error) {
	root, err := unpack(ctx, dir, "bookworm", "qemu-user-static")
	return filepath.Join(root, "usr/bin/qemu-"+arch+"-static"), err
}

// Busybox returns busybox, which needs no libraries, unpacked to dir.
func Busybox(ctx context.Context, dir string) (string, error) {
	root, err := unpack(ctx, dir, "bookworm", "busybox-static")
	return filepath.Join(root, "bin/busybox"), err
}

// only returns the one file that matches one of some patterns.
func only(patterns ...string) (string, error) {
	var found []string
	for _, p := range patterns {
		f, err := filepath.Glob(p)
		if err != nil {
			return "", err
		}
		found = append(found, f...)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files match %s, want one", len(found), strings.Join(patterns, " or "))
	}
	return found[0], nil
}
