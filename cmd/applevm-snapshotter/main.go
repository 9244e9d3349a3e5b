// Command applevm-snapshotter serves containerd's snapshots and diff services
// for containers that run in virtual machines of their own.
//
//	applevm-snapshotter [--config FILE] [--root DIR] [--address SOCKET] [--containerd-address SOCKET] [--log-level LEVEL]
//	applevm-snapshotter config containerd [the same flags]
//
// It needs no privilege. The second form prints what containerd's
// configuration must hold.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/log"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/snapshotter/daemon"
	"github.com/applevm/applevm/snapshotter/hostconfig"
)

func main() {
	// Everything that the daemon makes is for its user alone, unless it says
	// otherwise.
	syscall.Umask(0o077)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintf(os.Stderr, "applevm-snapshotter: %v\n", err)
		os.Exit(1)
	}
}

// run does what args, the command line without the program's name, asks for.
func run(ctx context.Context, args []string, out io.Writer) error {
	command := daemonCommand
	if len(args) > 0 && args[0] == "config" {
		if len(args) < 2 || args[1] != "containerd" {
			return errors.New("config: say what to print: config containerd")
		}
		command, args = containerdCommand, args[2:]
	}
	cfg, err := parse(args)
	if err != nil {
		return err
	}
	return command(ctx, cfg, out)
}

func daemonCommand(ctx context.Context, cfg config.Config, _ io.Writer) error {
	return daemon.Run(ctx, cfg.Snapshotter, nil)
}

func containerdCommand(_ context.Context, cfg config.Config, out io.Writer) error {
	return hostconfig.ForConfig(cfg.Snapshotter).Write(out)
}

// parse reads the configuration file and puts what the flags say over it.
func parse(args []string) (config.Config, error) {
	fs := flag.NewFlagSet("applevm-snapshotter", flag.ContinueOnError)
	file := fs.String("config", "", "configuration `file`; the default is $"+config.Env+", else /etc/applevm/config.toml")
	root := fs.String("root", "", "`directory` for images and metadata")
	address := fs.String("address", "", "unix `socket` to serve on")
	containerd := fs.String("containerd-address", "", "containerd's unix `socket`")
	level := fs.String("log-level", "info", "trace, debug, info, warn, error")
	if err := fs.Parse(args); err != nil {
		return config.Config{}, err
	}
	if fs.NArg() > 0 {
		return config.Config{}, fmt.Errorf("unknown argument %q; see --help", fs.Arg(0))
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
