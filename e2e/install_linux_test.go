package e2e

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"howett.net/plist"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// What `make install` puts on a Mac works together: the programs, started by the jobs'
// own arguments and environment as their user, with the configuration as it is
// installed, run a container. Only the directory of containerd's sockets, which is the
// system's own, is another.
func TestInstallationOfMacOSRuns(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test starts services as another user: run it with sudo")
	}
	dir, err := os.MkdirTemp("/tmp", "avi") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	dismiss, err := stack.Watch(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dismiss()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	prefix, run := dir+"/p", dir+"/run"
	install := exec.CommandContext(t.Context(), "../scripts/install", "install")
	install.Env = append(os.Environ(), "DESTDIR="+dir+"/d", "PREFIX="+prefix, "SYSTEM=Darwin", "OWNER=nobody", "CODESIGN=true")
	must(t, install)
	if err := os.Rename(dir+"/d"+prefix, prefix); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(prefix + "/etc/applevm/*.toml")
	if err != nil || len(files) != 3 {
		t.Fatalf("configuration: %q, %v", files, err)
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte(strings.ReplaceAll(readAll(t, f), "/var/run/containerd", run)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{run + "/fifo", run + "/s", dir + "/home"} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, stack.Nobody, stack.Nobody)
	})
	if err != nil {
		t.Fatal(err)
	}
	as := &syscall.Credential{Uid: stack.Nobody, Gid: stack.Nobody}
	for _, name := range []string{"snapshotter", "containerd"} {
		var job struct {
			UserName, StandardErrorPath string
			ProgramArguments            []string
			EnvironmentVariables        map[string]string
		}
		if _, err := plist.Unmarshal([]byte(readAll(t, dir+"/d/Library/LaunchDaemons/dev.applevm."+name+".plist")), &job); err != nil {
			t.Fatal(err)
		}
		if job.UserName != "nobody" {
			t.Errorf("%s runs as %q", name, job.UserName)
		}
		log, err := os.Create(job.StandardErrorPath)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(job.ProgramArguments[0], job.ProgramArguments[1:]...)
		cmd.Dir, cmd.Stderr = "/", log
		cmd.Env = []string{"HOME=" + dir + "/home"} // launchd sets it
		for k, v := range job.EnvironmentVariables {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			late := time.AfterFunc(15*time.Second, func() { _ = cmd.Process.Kill() })
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
			late.Stop()
			_ = log.Close()
			if t.Failed() {
				t.Logf("%s: %s", job.StandardErrorPath, readAll(t, job.StandardErrorPath))
			}
		})
		socket := map[string]string{"snapshotter": prefix + "/var/run/applevm/snapshotter.sock", "containerd": run + "/containerd.sock"}[name]
		waitFor(t, socket, func() bool {
			c, err := net.Dial("unix", socket)
			if err != nil {
				return false
			}
			return c.Close() == nil
		})
	}
	client := func(program string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Env = []string{"HOME=" + dir + "/home", "PATH=" + prefix + "/bin:/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINERD_ADDRESS=" + run + "/containerd.sock", "APPLEVM_CONFIG=" + prefix + "/etc/applevm/config.toml"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		cmd.Dir = "/"
		return cmd
	}
	ctr := prefix + "/libexec/applevm/ctr"
	r := do(t, client(prefix+"/bin/applevm-snapshotter", "check"))
	if r.code != 0 || !strings.Contains(r.stdout, "ok    shim: containerd runs io.containerd.applevm.v1") {
		t.Errorf("check: %s", r)
	}
	archive, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	load := client(ctr, "image", "import", "--snapshotter", "applevm", "--platform", "linux/"+runtime.GOARCH, "-")
	load.Stdin = in
	must(t, load)
	if out := must(t, client(ctr, "run", "--rm", "--snapshotter", "applevm", "--runtime", "io.containerd.applevm.v1", "--fifo-dir", run+"/fifo", img, "installed", "echo", "hello")); out != "hello\n" {
		t.Errorf("got %q", out)
	}
	waitFor(t, "the end of the shim", func() bool {
		return exec.CommandContext(context.Background(), "pgrep", "-f", dir+"/p/bin/containerd-shim").Run() != nil
	})
}
