package images

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// MkfsErofs returns the command of a mkfs.erofs that can read a tar: the system's
// if it can, by the test that containerd makes before it loads its erofs differ,
// else Debian 13's, unpacked to dir. Debian 12's (erofs-utils 1.5, and none in its
// backports) cannot.
func MkfsErofs(ctx context.Context, dir string) ([]string, error) {
	if help, err := exec.CommandContext(ctx, "mkfs.erofs", "--help").CombinedOutput(); err == nil && bytes.Contains(help, []byte("--tar=")) {
		return []string{"mkfs.erofs"}, nil
	}
	return program(ctx, dir, "trixie", "erofs-utils", "usr/bin/mkfs.erofs")
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
