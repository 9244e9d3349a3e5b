package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// directorySnapshotters are containerd's own whose snapshots are directories of the
// host.
var directorySnapshotters = []string{"overlayfs", "native"}

// runWith prepares `ctr run` with a runtime and a snapshotter.
func runWith(t *testing.T, s *stack.Stack, runtime, snapshotter string, args ...string) *exec.Cmd {
	return s.Ctr(t.Context(), append([]string{"run", "--runtime", runtime, "--snapshotter", snapshotter,
		"--fifo-dir", filepath.Join(s.Dir, "fifo")}, args...)...)
}

const (
	applevm = "io.containerd.applevm.v1"
	runc    = "io.containerd.runc.v2"
)

// directoryTime is a directory's time in a line of find's.
var directoryTime = regexp.MustCompile(`^(d \S+ \S+ \S+ \S+) \S+`)

// A container sees the same files in a machine as it does under runc, with the same
// snapshotter.
func TestDirectoriesShowTheSameFilesAsUnderRunc(t *testing.T) {
	s := rootStack(t)
	const skip = `\( -path /proc -o -path /sys -o -path /dev -o -path /run \) -prune -o `
	const script = `find / -xdev ` + skip + `-printf '%y %m %U %G %s %T@ %n %p -> %l\n'; ` +
		`find / -xdev ` + skip + `-type f -print0 | xargs -0 cksum`
	for _, snapshotter := range directorySnapshotters {
		t.Run(snapshotter, func(t *testing.T) {
			lines := func(runtime string) map[string]bool {
				set := map[string]bool{}
				// Without a network it gets no files of ours in /etc.
				out := must(t, runWith(t, s, runtime, snapshotter, "--rm", "--annotation", "dev.applevm.network=none", img, name(t), "bash", "-c", script))
				for line := range strings.Lines(out) {
					if strings.HasSuffix(line, " / -> \n") { // made with the container
						continue
					}
					if snapshotter == "native" { // which copies the image, and does not always keep directories' times
						line = directoryTime.ReplaceAllString(line, "$1 -")
					}
					set[line] = true
				}
				return set
			}
			want, got := lines(runc), lines(applevm)
			if len(want) < 6000 {
				t.Fatalf("runc shows only %d lines", len(want))
			}
			differ := 0
			for _, d := range []struct {
				what string
				a, b map[string]bool
			}{{"only under runc", want, got}, {"only in the machine", got, want}} {
				for line := range d.a {
					if differ++; !d.b[line] && differ <= 20 {
						t.Errorf("%s: %s", d.what, line)
					} else if d.b[line] {
						differ--
					}
				}
			}
		})
	}
	clean(t, s)
}

// What a container writes is in its snapshot at once, with its owners; it is there when
// the container is started again, and when its shim was killed.
func TestDirectorySnapshotsKeepWhatIsWritten(t *testing.T) {
	s := rootStack(t)
	for _, snapshotter := range directorySnapshotters {
		t.Run(snapshotter, func(t *testing.T) {
			id := name(t)
			t.Cleanup(func() { remove(t, s, id) })
			must(t, runWith(t, s, applevm, snapshotter, "-d", img, id, "bash", "-c",
				`if [ -e /srv/kept ]; then cat /srv/kept > /srv/again; fi; `+
					`mkdir -p /srv/d; echo "$RANDOM$RANDOM" > /srv/new; mv /srv/new /srv/kept; chown 1234:4321 /srv/kept; chmod 4711 /srv/kept; `+
					`ln -sf /etc/passwd /srv/link; rm -f /etc/issue; setpriv --reuid 1000 --clear-groups touch /tmp/user; touch /srv/ready; sleep 1000`))
			exists := func(file string) func() bool {
				return func() bool { return s.CtrExec(t.Context(), "--exec-id", "x", id, "test", "-s", file).Run() == nil }
			}
			waitFor(t, "the file", func() bool {
				return s.CtrExec(t.Context(), "--exec-id", "x", id, "test", "-e", "/srv/ready").Run() == nil
			})
			kept := must(t, s.CtrExec(t.Context(), "--exec-id", "r", id, "cat", "/srv/kept"))
			if got := mountsOf(t, s.Dir); len(got) > 0 {
				t.Errorf("mounts of the host while the container runs: %q", got)
			}

			dir := snapshotDir(t, s, snapshotter, id)
			if b, err := os.ReadFile(filepath.Join(dir, "srv/kept")); err != nil || string(b) != kept {
				t.Errorf("on the host: %q, %v; in the container %q", b, err, kept)
			}
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(dir, "srv/kept"), &st); err != nil || st.Uid != 1234 || st.Gid != 4321 || st.Mode&0o7777 != 0o4711 {
				t.Errorf("owner %d:%d and mode %o, %v", st.Uid, st.Gid, st.Mode, err)
			}
			if err := unix.Stat(filepath.Join(dir, "tmp/user"), &st); err != nil || st.Uid != 1000 {
				t.Errorf("a user's file belongs to %d, %v", st.Uid, err)
			}
			if target, err := os.Readlink(filepath.Join(dir, "srv/link")); err != nil || target != "/etc/passwd" {
				t.Errorf("link to %q, %v", target, err)
			}

			_ = do(t, s.Ctr(t.Context(), "task", "delete", "--force", id))
			must(t, s.Ctr(t.Context(), "task", "start", "--fifo-dir", s.Dir+"/fifo", "--detach", id))
			waitFor(t, "the second file", exists("/srv/again"))
			if again := must(t, s.CtrExec(t.Context(), "--exec-id", "r", id, "cat", "/srv/again")); again != kept {
				t.Errorf("the second run found %q, the first wrote %q", again, kept)
			}

			for _, p := range s.Shims() {
				if strings.Contains(strings.Join(p.Args, " "), id) {
					_ = syscall.Kill(p.PID, syscall.SIGKILL)
				}
			}
			waitFor(t, "the machine's end", func() bool { return len(s.VMMs()) == 0 })
			waitFor(t, "the task's end", func() bool { // containerd removes it too, when it hears of the shim's end
				_ = do(t, s.Ctr(t.Context(), "task", "delete", "--force", id))
				return !strings.Contains(must(t, s.Ctr(t.Context(), "task", "list")), id)
			})
			if left := mountsOf(t, s.Dir); len(left) > 0 {
				t.Errorf("mounts after the shim was killed: %q", left)
			}
			// A task that containerd is about to remove is not in its list, and still in the way.
			waitFor(t, "room for the third start", func() bool {
				r := do(t, s.Ctr(t.Context(), "task", "start", "--fifo-dir", s.Dir+"/fifo", "--detach", id))
				if r.code != 0 && !strings.Contains(r.stderr, "already exists") {
					t.Fatal(r)
				}
				return r.code == 0
			})
			waitFor(t, "the third start", exists("/srv/again"))
		})
	}
	clean(t, s)
}

// containerd's own erofs snapshotter and differ: the machine's disks are its images.
func TestErofsSnapshotter(t *testing.T) {
	mkfs := t.TempDir()
	if err := images.InstallMkfsErofs(t.Context(), mkfs); err != nil {
		t.Fatal(err)
	}
	archive, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := newStack(t, stack.Options{Path: mkfs, Erofs: true})
	if err := s.Import(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	must(t, runWith(t, s, applevm, "erofs", "-d", img, id, "bash", "-c",
		`cat /srv/kept 2>/dev/null > /srv/again; grep ' / ' /proc/mounts > /srv/root; rm -f /etc/issue; echo "$RANDOM$RANDOM" > /srv/kept; sync; touch /srv/ready; sleep 1000`))
	exec := func(cmd ...string) string {
		return must(t, s.CtrExec(t.Context(), append([]string{"--exec-id", "x", id}, cmd...)...))
	}
	ready := func() bool {
		return s.CtrExec(t.Context(), "--exec-id", "x", id, "rm", "/srv/ready").Run() == nil
	}
	waitFor(t, "the files", ready)
	if root := exec("cat", "/srv/root"); !strings.HasPrefix(root, "overlay ") {
		t.Errorf("the root file system is %s", root)
	}
	if got := exec("sh", "-c", "ls /etc/issue 2>&1; cat /etc/debian_version; stat -c '%a %U' /usr/bin/passwd"); !strings.HasPrefix(got, "ls: cannot access '/etc/issue'") ||
		!strings.Contains(got, "\n12.") || !strings.HasSuffix(got, "\n4755 root\n") {
		t.Errorf("its files: %q", got)
	}
	kept := exec("cat", "/srv/kept")
	if got := mountsOf(t, s.Dir); len(got) > 0 {
		t.Errorf("mounts of the host while the container runs: %q", got)
	}
	_ = do(t, s.Ctr(t.Context(), "task", "delete", "--force", id))
	must(t, s.Ctr(t.Context(), "task", "start", "--fifo-dir", s.Dir+"/fifo", "--detach", id))
	waitFor(t, "the second run", ready)
	if again := exec("cat", "/srv/again"); again != kept {
		t.Errorf("the second run found %q, the first wrote %q", again, kept)
	}
}

// snapshotDir is where what a container writes must be found on the host.
func snapshotDir(t *testing.T, s *stack.Stack, snapshotter, id string) string {
	t.Helper()
	out := must(t, s.Ctr(t.Context(), "snapshots", "--snapshotter", snapshotter, "mounts", "/x", id))
	if _, rest, ok := strings.Cut(out, "upperdir="); ok {
		dir, _, _ := strings.Cut(rest, ",")
		return dir
	}
	f := strings.Fields(out) // mount -t bind SOURCE TARGET -o OPTIONS
	if len(f) < 4 || !filepath.IsAbs(f[3]) {
		t.Fatalf("mounts: %s", out)
	}
	return f[3]
}

// mountsOf returns the host's mounts below dir, but for the view of snapshots, which
// the stack has all the time.
func mountsOf(t *testing.T, dir string) (found []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, dir+"/") && !strings.Contains(line, " fuse.applevm ") {
			found = append(found, line)
		}
	}
	return found
}

// An ordinary user gives a container a directory of its own, without any snapshotter.
func TestRootfsDirectoryOfAnOrdinaryUser(t *testing.T) {
	s := userStack(t)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is missing: run make deps")
	}
	root := filepath.Join(s.Dir, "tmp", "rootfs")
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	must(t, exec.Command("sh", "-c", fmt.Sprintf(
		`mkdir -p %[1]s/bin %[1]s/proc %[1]s/dev %[1]s/sys %[1]s/etc && cp %[2]s %[1]s/bin/ && `+
			`for c in sh id cat ln; do ln -s busybox %[1]s/bin/$c; done && echo from the host > %[1]s/etc/motd && chown -R %[3]d:%[3]d %[1]s`,
		root, busybox, stack.Nobody)))
	secret := filepath.Join(s.Dir, "tmp", "secret")
	if err := os.WriteFile(secret, []byte("the host's"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(secret) })
	r := do(t, s.CtrRun(t.Context(), "--rm", "--rootfs", root, name(t), "/bin/sh", "-c",
		"cat /etc/motd; echo from the guest > /etc/new; id -u; ln -s ../../secret /etc/out; cat /etc/out /../../secret "+secret))
	if r.code != 1 || r.stdout != "from the host\n0\n" || strings.Count(r.stderr, "No such file or directory") != 3 {
		t.Errorf("got %s", r)
	}
	var st unix.Stat_t
	if b, err := os.ReadFile(filepath.Join(root, "etc/new")); err != nil || string(b) != "from the guest\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	if err := unix.Stat(filepath.Join(root, "etc/new"), &st); err != nil || st.Uid != stack.Nobody {
		t.Errorf("owner %d, %v", st.Uid, err)
	}
	fails(t, s.CtrRun(t.Context(), "--rm", "--rootfs", root+"2", name(t), "/bin/sh"), root+"2", "no such file or directory")
	if left := s.Clean(context.Background()); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
