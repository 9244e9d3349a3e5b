package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/snapshotter"
	"github.com/applevm/applevm/snapshotter/hostconfig"
)

// cleanupTimeout bounds what the daemon may take: it removes files one by one.
const cleanupTimeout = 10 * time.Minute

// gc removes what belongs to no snapshot and prints how much that was.
func gc(ctx context.Context, c *call) error {
	cfg, err := c.parseConfig(new(flag.FlagSet))
	if err != nil {
		return err
	}
	root := cfg.Snapshotter.Root
	// Opening a directory makes it a root; whatever is then in it is garbage.
	if _, err := os.Stat(filepath.Join(root, "metadata.db")); errors.Is(err, fs.ErrNotExist) {
		return lineError{fmt.Errorf("gc: %s is no root directory of %s, it has no metadata.db; name the right one with --root", root, program)}
	} else if err != nil {
		return lineError{fmt.Errorf("gc: %w; run this as the user that runs the daemon", err)}
	}
	before, err := allocatedBelow(root)
	if err != nil {
		return lineError{fmt.Errorf("gc: %w; run this as the user that runs the daemon", err)}
	}
	if err := cleanup(ctx, cfg.Snapshotter); err != nil {
		return lineError{fmt.Errorf("gc: %w", err)}
	}
	after, err := allocatedBelow(root)
	if err != nil {
		return lineError{fmt.Errorf("gc: %w", err)}
	}
	// What the daemon has written meanwhile may be more than what was freed.
	_, err = fmt.Fprintf(c.out, "freed %s\n", sizeText(max(0, before-after)))
	return err
}

// cleanup removes the garbage in the root directory, or has the daemon do it
// if that uses the directory.
func cleanup(ctx context.Context, cfg config.Snapshotter) error {
	sn, err := snapshotter.New(ctx, cfg.Root, snapshotter.Options{WritableSize: cfg.WritableSizeGiB << 30})
	if errors.Is(err, errdefs.ErrUnavailable) {
		return cleanupByDaemon(ctx, cfg)
	}
	if err != nil {
		return err
	}
	return errors.Join(sn.Cleanup(ctx), sn.Close())
}

func cleanupByDaemon(ctx context.Context, cfg config.Snapshotter) error {
	conn, err := grpc.NewClient("unix:"+cfg.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("daemon at %s: %w", cfg.Address, err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), hostconfig.Snapshotter)
	err = sn.(snapshots.Cleaner).Cleanup(ctx)
	if errdefs.IsUnavailable(err) {
		return fmt.Errorf("another process uses %s, and no daemon answers at %s; name its socket with --address: %w", cfg.Root, cfg.Address, err)
	}
	if err != nil {
		return fmt.Errorf("the daemon at %s: %w", cfg.Address, err)
	}
	return nil
}
