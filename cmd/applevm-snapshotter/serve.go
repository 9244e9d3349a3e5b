package main

import (
	"context"
	"flag"
	"syscall"

	"github.com/applevm/applevm/internal/unifiedlog"
	"github.com/applevm/applevm/snapshotter/daemon"
)

// serve is the daemon.
func serve(ctx context.Context, c *call) error {
	cfg, err := c.parseConfig(new(flag.FlagSet))
	if err != nil {
		return err
	}
	// Everything that the daemon makes is for its user alone, unless it says
	// otherwise.
	syscall.Umask(0o077)
	unifiedlog.Install("snapshotter")
	return daemon.Run(ctx, cfg.Snapshotter, nil)
}
