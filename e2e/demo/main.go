// Command demo shows applevm at work: unmodified ctr as an ordinary user, then
// unmodified nerdctl as root, each container in a virtual machine of its own. Every
// step's result is checked; the demo fails if one is not as it must be.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		cancel()
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	d := &demo{out: out}

	d.say("A Debian image from Debian's packages, by mmdebstrap (made once, then cached)")
	start := time.Now()
	archive, err := images.Debian(ctx)
	if err != nil {
		return err
	}
	st, err := os.Stat(archive)
	if err != nil {
		return err
	}
	d.result(fmt.Sprintf("%s, %d MB compressed", images.DebianRef, st.Size()>>20), start)

	if err := d.with(ctx, stack.Options{Unprivileged: true}, archive, asUser); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		d.say("nerdctl wants root on Linux: `sudo make demo` shows that part too")
		return nil
	}
	if err := d.with(ctx, stack.Options{}, archive, asRoot); err != nil {
		return err
	}
	d.say("Nothing is left running.")
	return nil
}

// with runs steps on a stack of its own, then checks that nothing is left of it.
func (d *demo) with(ctx context.Context, opts stack.Options, archive string, steps func(context.Context, *demo, *stack.Stack, string) error) (retErr error) {
	start := time.Now()
	s, err := stack.Start(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("%w\n%s", retErr, s.Logs())
		}
		retErr = errors.Join(retErr, s.Close())
	}()
	who := fmt.Sprintf("root (uid %d)", os.Getuid())
	if s.Unprivileged {
		who = fmt.Sprintf("an ordinary user (uid %d) without any capability", stack.Nobody)
	}
	d.say("containerd and applevm-snapshotter, both started as " + who)
	d.result("serving", start)

	d.say("Import the image: its layer becomes an ext4 image, without mount, loop device or root")
	start = time.Now()
	if err := s.Import(ctx, archive); err != nil {
		return err
	}
	d.result("imported", start)

	if err := steps(ctx, d, s, archive); err != nil {
		return err
	}
	if left := s.Clean(ctx); len(left) > 0 {
		return fmt.Errorf("left behind after all containers were removed: %q", left)
	}
	return nil
}
