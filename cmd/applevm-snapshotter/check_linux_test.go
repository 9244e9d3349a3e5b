package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/e2e/stack"
	"github.com/applevm/applevm/internal/shortdir"
)

// findingLine is the form of a line that check prints.
var findingLine = regexp.MustCompile(`^(ok|warn|FAIL) +\S.*?(  — \S.*)?$`)

// levels returns what check printed, by the first words of each finding.
func levels(t *testing.T, out string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for l := range strings.Lines(out) {
		l = strings.TrimSuffix(l, "\n")
		m := findingLine.FindStringSubmatch(l)
		if m == nil || (m[1] == "ok") != (m[2] == "") {
			t.Errorf("%q is no finding", l)
			continue
		}
		what, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(l, m[1])), ":")
		found[what] += m[1]
	}
	return found
}

// TestCheckOfAReadyHost asks a real containerd with a real guest image, as the
// end-to-end tests use them.
func TestCheckOfAReadyHost(t *testing.T) {
	s, err := stack.Start(t.Context(), stack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	out, err := output(t, "check", "--config", filepath.Join(s.Dir, "applevm.toml"))
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	found := levels(t, out)
	if found["accelerator"] == "" {
		t.Errorf("nothing is said of the accelerator in\n%s", out)
	}
	delete(found, "accelerator") // that is this host's
	if os.Geteuid() == 0 && found["view"] != "ok" {
		t.Errorf("the view: %q", found["view"])
	}
	delete(found, "view")
	for _, what := range []string{
		"guest image", "guest kernel", "guest initramfs", "QEMU", "root directory", "socket directory", "cache directory",
		"snapshotter socket", "containerd socket", "snapshotter daemon", "containerd",
		"proxy plugin io.containerd.snapshotter.v1.applevm", "proxy plugin io.containerd.differ.v1.applevm-diff", "shim",
	} {
		if found[what] != "ok" {
			t.Errorf("%s: %q in\n%s", what, found[what], out)
		}
		delete(found, what)
	}
	if len(found) > 0 {
		t.Errorf("more findings: %v", found)
	}

	// The shim goes: containerd has not looked for this one before.
	if err := os.Remove(filepath.Join(s.Dir, "bin", "containerd-shim-applevm-v1")); err != nil {
		t.Fatal(err)
	}
	out, err = output(t, "check", "--config", filepath.Join(s.Dir, "applevm.toml"))
	if err == nil || err.Error() != "this host is not ready: 1 finding is FAIL" || levels(t, out)["shim"] != "FAIL" {
		t.Errorf("without the shim: %v\n%s", err, out)
	}
}

// TestCheckAsAnotherUser runs check where nothing is set up, as a user who may
// not do what is needed.
func TestCheckAsAnotherUser(t *testing.T) {
	dir := shortdir.New(t)
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	// The other user may not reach the directory that go test builds in.
	if err := os.WriteFile(filepath.Join(dir, "test"), self, 0o755); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(dir, "locked\x1b[2J")
	if err := os.Mkdir(locked, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "test"), "check", "--root", locked, "--address", filepath.Join(locked, "s.sock"),
		"--containerd-address", filepath.Join(dir, "c.sock"))
	cmd.Env = append(os.Environ(), childEnv+"=1", config.Env+"=")
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ended with %v", err)
	}
	if !regexp.MustCompile(`^applevm-snapshotter: this host is not ready: \d findings are FAIL\n$`).MatchString(stderr.String()) {
		t.Errorf("on stderr: %q", stderr.String())
	}
	found := levels(t, stdout.String())
	for what, want := range map[string]string{
		"guest image": "FAIL", "root directory": "FAIL", "socket directory": "FAIL", "snapshotter daemon": "FAIL", "containerd": "FAIL",
		"snapshotter socket": "ok", "containerd socket": "ok",
	} {
		if found[what] != want {
			t.Errorf("%s: %q, want %q in\n%s", what, found[what], want, stdout.String())
		}
	}
	if strings.ContainsRune(stdout.String(), 0x1b) || !strings.Contains(stdout.String(), `locked\x1b[2J: permission denied`) {
		t.Errorf("got\n%s", stdout.String())
	}
}
