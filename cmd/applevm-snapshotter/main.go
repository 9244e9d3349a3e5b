// Command applevm-snapshotter serves containerd's snapshots and diff services
// for containers that run in virtual machines of their own. Its subcommands set
// up and examine a host. It needs no privilege.
//
//	applevm-snapshotter [flags]
//	applevm-snapshotter COMMAND [flags] ...
//
// applevm-snapshotter --help lists them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
)

// program is the name under which errors are reported.
const program = "applevm-snapshotter"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A second signal ends at once what does not end by the first.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
		os.Exit(1)
	}
}

// command is one thing that the program does.
type command struct {
	name     string // one word or two; the daemon has none
	operands string // for the usage
	what     string // in one line
	run      func(ctx context.Context, c *call) error
}

// commands are all of them, the daemon first.
func commands() []command {
	return []command{
		{"", "", "serve snapshots and diffs to containerd", serve},
		{"check", "", "say whether this host is ready for containers", check},
		{"config containerd", "", "print what containerd's configuration must hold", configContainerd},
		{"config default", "", "print the default configuration", configDefault},
		{"config dump", "", "print the configuration that is in effect: the file and, over it, the flags", configDump},
		{"convert", "LAYER OUT", "turn a layer (tar, tar.gz, tar.zst; - is standard input) into an ext4 image", convert},
		{"gc", "", "remove files that belong to no snapshot", gc},
		{"view", "", "show the files of snapshots to clients that mount them (nerdctl export, diff, cp); Linux, as root", showView},
		{"inspect", "IMAGE", "describe an ext4 image and list its files", inspect},
		{"volume", "FILE SIZE", "make an empty ext4 image (10G, say) that a container can mount", volume},
	}
}

// run does what args, the command line without the program's name, asks for.
func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	cmd, args, err := find(args)
	if err != nil {
		return err
	}
	err = cmd.run(ctx, &call{command: cmd, args: args, in: in, out: out})
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	return err
}

// find returns the command that args begin with, and the other arguments. It is
// the daemon where they begin with a flag.
func find(args []string) (command, []string, error) {
	all := commands()
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return all[0], args, nil
	}
	var family []string // the commands with this first word
	for _, c := range all[1:] {
		words := strings.Fields(c.name)
		if words[0] != args[0] {
			continue
		}
		if len(words) == 1 || len(args) > 1 && words[1] == args[1] {
			return c, args[len(words):], nil
		}
		family = append(family, c.name)
	}
	if family != nil {
		return command{}, nil, fmt.Errorf("%s: say which: %s", args[0], strings.Join(family, ", "))
	}
	return command{}, nil, fmt.Errorf("unknown command %q; %s --help lists them", args[0], program)
}

// isCommand tells whether a command begins with word.
func isCommand(word string) bool {
	return slices.ContainsFunc(commands()[1:], func(c command) bool { return strings.Fields(c.name)[0] == word })
}

// call is one run of a command.
type call struct {
	command
	args []string
	in   io.Reader
	out  io.Writer
}

// parse reads flags and operands, in any order, and returns the operands, as
// many as the usage names. After --help, which it answers, it returns
// flag.ErrHelp.
func (c *call) parse(fs *flag.FlagSet) ([]string, error) {
	fs.Init(program, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are reported once, in one line
	var operands []string
	for args := c.args; ; {
		err := fs.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			return nil, errors.Join(err, c.usage(fs))
		}
		if err != nil {
			return nil, lineError{fmt.Errorf("%w; see %s", err, c.help())}
		}
		rest := fs.Args()
		if parsed := args[:len(args)-len(rest)]; len(parsed) > 0 && parsed[len(parsed)-1] == "--" {
			operands = append(operands, rest...)
			break
		}
		if len(rest) == 0 {
			break
		}
		operands, args = append(operands, rest[0]), rest[1:]
	}
	switch want := len(strings.Fields(c.operands)); {
	case len(operands) > want && c.name == "" && isCommand(operands[want]):
		return nil, fmt.Errorf("flags of %s stand after it; see %s %[1]s --help", operands[want], program)
	case len(operands) > want:
		return nil, fmt.Errorf("unknown argument %q; see %s", operands[want], c.help())
	case len(operands) < want:
		return nil, fmt.Errorf("%s takes %s; see %s", c.name, c.operands, c.help())
	}
	return operands, nil
}

// help is how the user gets at the usage.
func (c *call) help() string { return strings.Join(strings.Fields(program+" "+c.name+" --help"), " ") }

// usage prints what --help asks for; the daemon's is that of the whole program.
func (c *call) usage(fs *flag.FlagSet) error {
	var b strings.Builder
	flags := "flags"
	if c.name == "" {
		fmt.Fprintf(&b, "usage: %[1]s [flags]\n       %[1]s COMMAND [flags] …\n\n", program)
		fmt.Fprint(&b, "Without a command it serves snapshots and diffs to containerd.\n\ncommands:\n")
		w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
		for _, cmd := range commands()[1:] {
			fmt.Fprintf(w, "  %s\t%s\n", strings.TrimSpace(cmd.name+" "+cmd.operands), cmd.what)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		flags = "flags, which check, config and gc take too"
	} else {
		fmt.Fprintf(&b, "usage: %s\n\n%s: %s\n", strings.TrimSpace(program+" "+c.name+" [flags] "+c.operands), c.name, c.what)
	}
	first := true
	fs.VisitAll(func(*flag.Flag) {
		if first {
			fmt.Fprintf(&b, "\n%s:\n", flags)
		}
		first = false
	})
	fs.SetOutput(&b)
	fs.PrintDefaults()
	_, err := io.WriteString(c.out, b.String())
	return err
}
