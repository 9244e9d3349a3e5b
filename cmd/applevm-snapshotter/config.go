package main

import (
	"context"
	"flag"

	"github.com/containerd/log"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/snapshotter/hostconfig"
)

// parseConfig is parse for commands that read the configuration: it adds the
// flags for that to fs and returns what the file says, and the flags over it.
func (c *call) parseConfig(fs *flag.FlagSet) (config.Config, error) {
	file := fs.String("config", "", "configuration `file`; the default is $"+config.Env+", else /etc/applevm/config.toml")
	root := fs.String("root", "", "`directory` for images and metadata")
	address := fs.String("address", "", "unix `socket` of the daemon")
	containerd := fs.String("containerd-address", "", "containerd's unix `socket`")
	level := fs.String("log-level", "info", "how much is logged: trace, debug, info, warn, error")
	if _, err := c.parse(fs); err != nil {
		return config.Config{}, err
	}
	if err := log.SetLevel(*level); err != nil {
		return config.Config{}, err
	}
	cfg, err := config.Load(*file)
	if err != nil {
		return config.Config{}, err
	}
	for _, f := range []struct {
		value string
		field *string
	}{
		{*root, &cfg.Snapshotter.Root},
		{*address, &cfg.Snapshotter.Address},
		{*containerd, &cfg.Snapshotter.ContainerdAddress},
	} {
		if f.value != "" {
			*f.field = f.value
		}
	}
	return cfg, nil
}

// configContainerd prints what containerd's configuration must hold.
func configContainerd(_ context.Context, c *call) error {
	cfg, err := c.parseConfig(new(flag.FlagSet))
	if err != nil {
		return err
	}
	return hostconfig.ForConfig(cfg.Snapshotter).Write(c.out)
}

// configDefault prints the configuration that holds without a file.
func configDefault(_ context.Context, c *call) error {
	if _, err := c.parse(new(flag.FlagSet)); err != nil {
		return err
	}
	return config.Default().Write(c.out)
}

// configDump prints the configuration in effect.
func configDump(_ context.Context, c *call) error {
	cfg, err := c.parseConfig(new(flag.FlagSet))
	if err != nil {
		return err
	}
	return cfg.Write(c.out)
}
