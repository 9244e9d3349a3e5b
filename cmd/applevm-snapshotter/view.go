package main

import (
	"context"
	"flag"

	"github.com/applevm/applevm/snapshotter/view"
)

// showView shows all files of snapshots to clients that mount them.
func showView(ctx context.Context, c *call) error {
	cfg, err := c.parseConfig(new(flag.FlagSet))
	if err != nil {
		return err
	}
	return view.Serve(ctx, cfg.Snapshotter.Root, nil)
}
