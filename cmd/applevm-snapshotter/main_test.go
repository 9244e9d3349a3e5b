package main

import (
	"bytes"
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
)

func TestFlagsOverrideTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("[snapshotter]\nroot = \"/file/root\"\naddress = \"/file/s.sock\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := parse([]string{"--config", file, "--address", "/flag/s.sock", "--containerd-address", "/flag/c.sock"})
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default().Snapshotter
	want.Root, want.Address, want.ContainerdAddress = "/file/root", "/flag/s.sock", "/flag/c.sock"
	if cfg.Snapshotter != want {
		t.Errorf("got %+v, want %+v", cfg.Snapshotter, want)
	}
}

func TestConfigContainerd(t *testing.T) {
	t.Setenv(config.Env, "")
	var out bytes.Buffer
	if err := run(t.Context(), []string{"config", "containerd", "--address", "/x/s.sock"}, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), `address = "/x/s.sock"`) {
		t.Errorf("the socket is not in\n%s", out.String())
	}
}

func TestRunRefuses(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"config"}, "config containerd"},
		{[]string{"config", "docker"}, "config containerd"},
		{[]string{"serve"}, `"serve"`},
		{[]string{"--config", "/none.toml"}, "/none.toml"},
		{[]string{"--log-level", "loud"}, "loud"},
	} {
		if err := run(t.Context(), tt.args, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("run(%q) = %v, want an error with %q", tt.args, err, tt.want)
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
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
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
