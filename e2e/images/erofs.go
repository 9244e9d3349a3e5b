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

// MkfsErofs returns the command of a mkfs.erofs that can read a tar: the system's
// if it can, by the test that containerd makes before it loads its erofs differ,
// else Debian 13's, unpacked to dir and run with its own libraries. Debian 12's
// (erofs-utils 1.5, and none in its backports) cannot.
func MkfsErofs(ctx context.Context, dir string) ([]string, error) {
	if help, err := exec.CommandContext(ctx, "mkfs.erofs", "--help").CombinedOutput(); err == nil && bytes.Contains(help, []byte("--tar=")) {
		return []string{"mkfs.erofs"}, nil
	}
	tar, err := erofsUtils(ctx)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(dir, "erofs")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	// Device nodes and owners, which only root could make, are not needed.
	out, err := exec.CommandContext(ctx, "tar", "-C", root, "--no-same-owner", "-xf", tar, "./usr").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("unpack mkfs.erofs: %w: %s", err, bytes.TrimSpace(out))
	}
	loader, err := only(filepath.Join(root, "usr/lib/*-linux-gnu/ld-linux-*.so.*"))
	if err != nil {
		return nil, err
	}
	return []string{loader, "--library-path", filepath.Dir(loader), filepath.Join(root, "usr/bin/mkfs.erofs")}, nil
}

// InstallMkfsErofs makes a program mkfs.erofs that can read a tar, in dir, for a PATH.
func InstallMkfsErofs(ctx context.Context, dir string) error {
	cmd, err := MkfsErofs(ctx, dir)
	if err != nil {
		return err
	}
	if cmd[0], err = exec.LookPath(cmd[0]); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "mkfs.erofs"), []byte("#!/bin/sh\nexec "+strings.Join(cmd, " ")+` "$@"`+"\n"), 0o755)
}

// erofsUtils makes, or finds in the cache, a tar with Debian 13's mkfs.erofs and the
// libraries it needs.
func erofsUtils(ctx context.Context) (string, error) {
	args := []string{"--variant=extract", "--quiet", "--include=erofs-utils", "trixie"}
	return cached(ctx, "mkfs-erofs.tar", strings.Join(args, "\x00"), func(_, out string) error {
		return mmdebstrap(ctx, append(args, out)...)
	})
}

// only returns the one file that matches a pattern.
func only(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files match %s, want one", len(found), pattern)
	}
	return found[0], nil
}
