package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/console"
)

// demo prints what is done and how long it took.
type demo struct{ out io.Writer }

// step is one command with what it must print and how it must end.
type step struct {
	title string
	cmd   *exec.Cmd
	exit  int
	check func(output string) error
}

func (d *demo) say(text string) { fmt.Fprintf(d.out, "\n== %s\n", text) }

func (d *demo) result(text string, start time.Time) {
	fmt.Fprintf(d.out, "   %s   [%.2f s]\n", text, time.Since(start).Seconds())
}

func (d *demo) run(s step) error {
	if s.title != "" {
		d.say(s.title)
	}
	line := commandLine(s.cmd)
	fmt.Fprintf(d.out, "$ %s\n", line)
	start := time.Now()
	out, err := s.cmd.CombinedOutput()
	for l := range strings.Lines(string(bytes.TrimSpace(out))) {
		fmt.Fprintf(d.out, "   %s\n", strings.TrimRight(l, "\r\n"))
	}
	code, err := exitCode(err)
	if err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	d.result(fmt.Sprintf("exit code %d", code), start)
	if code != s.exit {
		return fmt.Errorf("%s: exit code %d, want %d: %s", line, code, s.exit, out)
	}
	if s.check != nil {
		if err := s.check(string(out)); err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
	}
	return nil
}

func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// exchange is one round of a dialogue: wait for text, then type a line.
type exchange struct{ wait, typed string }

// interactive runs cmd on a terminal of 80 columns and 24 rows and talks to it.
func (d *demo) interactive(ctx context.Context, cmd *exec.Cmd, exit int, dialogue []exchange) error {
	d.say("An interactive terminal")
	line := commandLine(cmd)
	fmt.Fprintf(d.out, "$ %s\n", line)
	start := time.Now()
	pty, name, err := console.NewPty()
	if err != nil {
		return err
	}
	defer pty.Close()
	if err := pty.Resize(console.WinSize{Height: 24, Width: 80}); err != nil {
		return err
	}
	tty, err := openTTY(name)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	tty.Close()
	if err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	output := make(chan string)
	go func() {
		defer close(output)
		buf := make([]byte, 4096)
		for {
			n, err := pty.Read(buf)
			if n > 0 {
				output <- string(buf[:n])
			}
			if err != nil {
				return // EIO: the other side is closed
			}
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var all, pending strings.Builder
	for _, x := range dialogue {
		for !strings.Contains(pending.String(), x.wait) {
			select {
			case s, ok := <-output:
				if !ok {
					_ = cmd.Wait()
					return fmt.Errorf("%s: ended while %q was awaited: %s", line, x.wait, all.String())
				}
				all.WriteString(s)
				pending.WriteString(s)
			case <-ctx.Done():
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				return fmt.Errorf("%s: no %q in a minute: %s", line, x.wait, all.String())
			}
		}
		pending.Reset()
		if _, err := io.WriteString(pty, x.typed+"\n"); err != nil {
			return fmt.Errorf("%s: type %q: %w", line, x.typed, err)
		}
	}
	for s := range output {
		all.WriteString(s)
	}
	code, err := exitCode(cmd.Wait())
	if err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	for l := range strings.Lines(all.String()) {
		fmt.Fprintf(d.out, "   %s\n", strings.TrimRight(l, "\r\n"))
	}
	d.result(fmt.Sprintf("exit code %d", code), start)
	if code != exit {
		return fmt.Errorf("%s: exit code %d, want %d: %s", line, code, exit, all.String())
	}
	return nil
}
