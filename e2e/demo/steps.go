package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
	"golang.org/x/sys/unix"
)

const img = images.DebianRef

// asUser is what ctr does as an ordinary user.
func asUser(ctx context.Context, d *demo, s *stack.Stack, archive string) error {
	host, err := hostKernel()
	if err != nil {
		return err
	}
	for _, step := range []step{
		{"A container's files are the image's", s.CtrRun(ctx, "--rm", img, "demo", "cat", "/etc/os-release"), 0,
			has("Debian GNU/Linux 12")},
		{"Its kernel is the virtual machine's; the host runs " + host, s.CtrRun(ctx, "--rm", img, "demo", "uname", "-a"), 0,
			func(out string) error {
				if strings.Contains(out, host) {
					return fmt.Errorf("the host's kernel %s shows in the container: %s", host, out)
				}
				return has("Linux")(out)
			}},
		{"Exit codes come through", s.CtrRun(ctx, "--rm", img, "demo", "sh", "-c", "exit 42"), 42, nil},
	} {
		if err := d.run(step); err != nil {
			return err
		}
	}

	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	const userRef = "docker.io/library/debian:app"
	withUser, err := images.WithUser(ctx, archive, userRef, "app", dir)
	if err != nil {
		return err
	}
	if err := s.Import(ctx, withUser); err != nil {
		return err
	}
	if err := d.run(step{"An image with USER app; its layer is there already", s.CtrRun(ctx, "--rm", userRef, "demo", "id"), 0,
		has("uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)")}); err != nil {
		return err
	}

	if err := d.interactive(ctx, s.CtrRun(ctx, "--rm", "-t", img, "demo", "bash"), 3, []exchange{
		{"# ", "tty"}, {"/dev/pts/0", "stty size"}, {"24 80", "exit 3"},
	}); err != nil {
		return err
	}

	for _, step := range []step{
		{"A container that stays, and a process more in it", s.CtrRun(ctx, "-d", img, "demo", "sleep", "1000"), 0, nil},
		{"", s.CtrExec(ctx, "--exec-id", "ps", "demo", "ps", "-e", "-o", "pid,args"), 0, has("sleep 1000")},
		{"", s.Ctr(ctx, "task", "list"), 0, has("RUNNING")},
		{"", s.Ctr(ctx, "task", "delete", "--force", "demo"), 0, nil},
		{"", s.Ctr(ctx, "container", "delete", "demo"), 0, nil},
	} {
		if err := d.run(step); err != nil {
			return err
		}
	}
	return nil
}

// asRoot is what nerdctl does.
func asRoot(ctx context.Context, d *demo, s *stack.Stack, _ string) error {
	for _, step := range []step{
		{"nerdctl, unmodified", s.NerdctlRun(ctx, "--rm", img, "sh", "-c", "echo hello from $(uname -r)"), 0, has("hello from")},
		{"", s.NerdctlRun(ctx, "-d", "--name", "web", img, "sh", "-c", "echo ready; exec sleep 1000"), 0, nil},
		{"", s.Nerdctl(ctx, "exec", "web", "cat", "/etc/hostname"), 0, nil},
		{"", s.Nerdctl(ctx, "ps"), 0, has("Up")},
		{"", s.Nerdctl(ctx, "logs", "web"), 0, has("ready")},
		{"", s.Nerdctl(ctx, "stop", "-t", "1", "web"), 0, has("web")},
		{"", s.Nerdctl(ctx, "rm", "web"), 0, has("web")},
	} {
		if err := d.run(step); err != nil {
			return err
		}
	}
	return nil
}

// has checks that a step's output holds text.
func has(text string) func(string) error {
	return func(out string) error {
		if !strings.Contains(out, text) {
			return fmt.Errorf("the output has no %q: %s", text, out)
		}
		return nil
	}
}

func hostKernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return string(bytes.TrimRight(u.Release[:], "\x00")), nil
}

// commandLine is how a user would type cmd.
func commandLine(cmd *exec.Cmd) string {
	args := cmd.Args
	for i, a := range args { // past setpriv and its flags
		if strings.HasSuffix(a, "/ctr") || strings.HasSuffix(a, "/nerdctl") {
			args = append([]string{a[strings.LastIndexByte(a, '/')+1:]}, args[i+1:]...)
			break
		}
	}
	quoted := make([]string, len(args))
	for i, a := range args {
		if quoted[i] = a; a == "" || strings.ContainsAny(a, " $;'\"(") {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
