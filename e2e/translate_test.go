package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// rosetta is where macOS has Rosetta for Linux.
const rosetta = "/Library/Apple/usr/libexec/oah/RosettaLinux/rosetta"

// TestTranslatedPrograms: a program for the other architecture runs where the host has a translator;
// where it has none the error says how to get one. With macOS's driver that is Rosetta, with QEMU's its
// user mode emulation; the program that translates is the latter's in both.
func TestTranslatedPrograms(t *testing.T) {
	s := userStack(t)
	ctx := t.Context()
	other, emulates := "arm64", "aarch64"
	if runtime.GOARCH == "arm64" {
		other, emulates = "amd64", "x86_64"
	}
	ref, daemon := foreignImage(t, s, other)
	id := name(t)
	run := func(args ...string) *exec.Cmd {
		return s.CtrRun(ctx, append([]string{"--rm", ref, id}, args...)...)
	}

	if runtime.GOOS == "darwin" {
		// Apple's own, if it is there.
		if _, err := os.Stat(rosetta); err != nil {
			fails(t, run("foreign"), "softwareupdate --install-rosetta")
		} else if got := must(t, run("foreign", "a", "b")); got != other+" 0 a b\n" {
			t.Errorf("as the first program: %q", got)
		}
		return
	}
	emulator := "qemu-" + emulates + "-static"
	install, share := "apt-get install qemu-user-static", filepath.Join(s.Dir, "bin")
	program := filepath.Join(share, emulator)
	if withVZ() {
		install, share = "softwareupdate --install-rosetta", filepath.Join(s.Dir, "bin", "rosetta.share")
		program = filepath.Join(share, "rosetta")
	} else {
		daemon = nil
	}
	fails(t, run("foreign"), "exec format error: it is built for "+other, "pull the image for linux/"+runtime.GOARCH+", or install ", install)

	binary, err := images.UserEmulator(ctx, t.TempDir(), emulates)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(share, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(program) })
	write(t, program, string(content))
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	if daemon != nil {
		keeper := filepath.Join(share, "rosettad")
		write(t, keeper, string(daemon))
		t.Cleanup(func() { _ = os.RemoveAll(share) })
		if err := os.Chmod(keeper, 0o755); err != nil {
			t.Fatal(err)
		}
	}

	if got := must(t, run("foreign", "a", "b")); got != other+" 0 a b\n" {
		t.Errorf("as the first program: %q", got)
	}
	fails(t, s.CtrRun(ctx, "--rm", "--annotation", "dev.applevm.translate=false", ref, id, "foreign"), "or set annotation dev.applevm.translate to true")

	// From a program of the machine's own, by another user, set-user-ID, and in a container with its own mounts only.
	t.Cleanup(func() { remove(t, s, id) })
	must(t, s.CtrRun(ctx, "-d", "--allow-new-privs", ref, id, "sleep", "1000"))
	for args, want := range map[string]string{
		"foreign x": other + " 0 x\n", "setpriv --reuid 1000 foreign x": other + " 1000 x\n", "setpriv --reuid 1000 setuid x": other + " 0 x\n",
	} {
		if got := must(t, s.CtrExec(ctx, append([]string{"--exec-id", "e", id}, strings.Fields(args)...)...)); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
	if r := do(t, s.CtrExec(ctx, "--exec-id", "ls", id, "ls", "/run/rosettad")); r.code == 0 {
		t.Errorf("a container of the machine's own programs has a daemon: %s", r)
	}
	if daemon == nil {
		return
	}

	// The daemon is nobody's, and keeps what it has made with the container.
	kept := name(t) + "-kept"
	t.Cleanup(func() { remove(t, s, kept) })
	must(t, s.Ctr(ctx, "container", "create", "--runtime", "io.containerd.applevm.v1", "--snapshotter", "applevm", ref, kept, "foreign", "ask", "/run/rosettad/rosetta.sock"))
	for _, want := range []string{"user 65534 start 1\n", "user 65534 start 2\n"} {
		if got := must(t, s.Ctr(ctx, "task", "start", "--fifo-dir", filepath.Join(s.Dir, "fifo"), kept)); got != want {
			t.Errorf("the daemon says %q, want %q", got, want)
		}
	}
	if out := must(t, s.Ctr(ctx, "snapshots", "--snapshotter", "applevm", "diff", kept)); strings.Contains(out, "translations") {
		t.Error("the container's changes have the translations")
	}
}

// foreignImage imports Debian's image with a program for another architecture, which prints its
// own, and returns the program for the machine's.
func foreignImage(t *testing.T, s *stack.Stack, arch string) (ref string, own []byte) {
	t.Helper()
	dir := t.TempDir()
	build := func(arch string) []byte {
		t.Helper()
		file := filepath.Join(dir, arch)
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "./testdata/foreign")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return []byte(readAll(t, file))
	}
	foreign, layer := build(arch), filepath.Join(dir, "layer.tar")
	err := images.Layer(layer,
		images.File{Name: "usr/local/bin/foreign", Mode: 0o755, Content: foreign}, images.File{Name: "usr/local/bin/setuid", Mode: 0o4755, Content: foreign})
	if err != nil {
		t.Fatal(err)
	}
	ref = "docker.io/library/debian:foreign"
	importImage(t, s, func(ctx context.Context) (string, error) {
		base, err := images.Debian(ctx)
		if err != nil {
			return "", err
		}
		return images.WithLayers(base, ref, dir, layer)
	})
	return ref, build(runtime.GOARCH)
}
