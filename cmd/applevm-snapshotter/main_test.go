package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/internal/shortdir"
)

// output runs the program's command in this process and returns what it prints.
func output(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	err := run(t.Context(), args, strings.NewReader(""), &out)
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("%q: an error of several lines: %q", args, err)
	}
	return out.String(), err
}

func TestRunRefuses(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"config"}, "config containerd, config default, config dump"},
		{[]string{"config", "docker"}, "config containerd"},
		{[]string{"config", "dump", "x"}, `"x"`},
		{[]string{"serve"}, `unknown command "serve"; applevm-snapshotter --help`},
		{[]string{"\x1b[2J"}, `"\x1b[2J"`},
		{[]string{"--nosuch"}, "-nosuch; see applevm-snapshotter --help"},
		{[]string{"gc", "--no\nsuch"}, `-no\nsuch; see applevm-snapshotter gc --help`},
		{[]string{"--root", "x", "check"}, "flags of check stand after it"},
		{[]string{"--root", "x", "y"}, `"y"`},
		{[]string{"convert", "a"}, "takes LAYER OUT; see applevm-snapshotter convert --help"},
		{[]string{"convert", "a", "b", "c"}, `"c"`},
		{[]string{"inspect"}, "takes IMAGE"},
		{[]string{"inspect", "--", "-tree=false", "b"}, `"b"`},
		{[]string{"--config", "/none.toml"}, "/none.toml"},
		{[]string{"config", "dump", "--log-level", "loud"}, "loud"},
	} {
		out, err := output(t, tt.args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || out != "" {
			t.Errorf("run(%q) = %v and the output %q, want an error with %q", tt.args, err, out, tt.want)
		}
	}
}

// TestHelp asks the program and each of its commands for help.
func TestHelp(t *testing.T) {
	all, err := output(t, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands() {
		if n := strings.Count(all, "  "+strings.TrimSpace(c.name+" "+c.operands)+" "); c.name != "" && n != 1 {
			t.Errorf("%q is listed %d times in\n%s", c.name, n, all)
		}
		out, err := output(t, append(strings.Fields(c.name), "-h")...)
		if want := strings.TrimSpace("usage: applevm-snapshotter " + c.name); err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("%q: %v, %q, want %q", c.name, err, out, want)
		}
	}
}

// childEnv makes the test binary applevm-snapshotter.
const childEnv = "APPLEVM_TEST_SNAPSHOTTER_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// nobody is an ordinary user without capabilities.
const nobody = 65534

// start runs the daemon, as an ordinary user even if the test is root's, and
// waits until it serves.
func start(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	socket := filepath.Join(dir, "run", "s.sock")
	cmd := exec.Command(filepath.Join(dir, "test"), "--root", filepath.Join(dir, "root"), "--address", socket)
	cmd.Env = append(os.Environ(), childEnv+"=1", config.Env+"=")
	cmd.Stderr = os.Stderr
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() // no effect after Wait
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			return cmd
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon does not serve: %v", err)
		}
	}
}

// TestDaemon starts the daemon as an ordinary user, kills it, starts it again
// on what that left, and stops it as an init system does.
func TestDaemon(t *testing.T) {
	dir := shortdir.New(t)
	// The other user may not reach the directory that go test builds in.
	self, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "test"), self, 0o755)
	}
	if err == nil && os.Geteuid() == 0 {
		err = os.Chown(dir, nobody, nobody)
	}
	if err != nil {
		t.Fatal(err)
	}

	first := start(t, dir)
	st, err := os.Lstat(filepath.Join(dir, "run", "s.sock"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v, want mode 0600", st, err)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // it was killed, that is no news

	second := start(t, dir)
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("stopped by SIGTERM: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "run", "s.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
