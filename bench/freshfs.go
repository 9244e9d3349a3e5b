package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// freshFS is an empty ext4, in a file in dir, for one command that unpacks a layer
// to a directory. On the file system of the bench's temporary directory such a
// command would take up to five times its CPU time: ext4 steps over inodes that
// were deleted in the last minutes, one by one, and each run would leave thousands.
type freshFS struct {
	dir string
}

func (f freshFS) disk() string  { return filepath.Join(f.dir, "disk") }
func (f freshFS) mount() string { return filepath.Join(f.dir, "mount") }

// create makes the file system with mke2fs's defaults.
func (f freshFS) create(ctx context.Context) error {
	if err := os.Mkdir(f.mount(), 0o700); err != nil {
		return err
	}
	return mke2fs(ctx, f.disk())
}

// command is a prefix for a command that sees the file system mounted. It is
// mounted in a mount namespace and so gone with the command, whatever becomes of
// it. Without barriers its end does not wait for the disk; without noinit_itable the
// kernel would write inode tables in the background.
func (f freshFS) command() []string {
	return []string{"unshare", "--mount", "--propagation", "private", "sh", "-c",
		`mount -t ext4 -o loop,nobarrier,noinit_itable "$1" "$2" && shift 2 && exec "$@"`, "sh", f.disk(), f.mount()}
}

// probe returns why no such file system can be mounted here, nil if one can.
func (f freshFS) probe(ctx context.Context) error {
	if err := f.create(ctx); err != nil {
		return err
	}
	argv := append(f.command(), "true")
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n")) // it goes into the table
		return fmt.Errorf("cannot mount: %w: %s", err, line)
	}
	return nil
}
