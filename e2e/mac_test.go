package e2e

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/applevm/applevm/e2e/stack"
)

// The macOS way on Linux: containerd, the snapshotter, the shims and all clients of
// userStack are one ordinary user without capabilities, with the devices of
// stack.BareDevices alone, and without a mount. TestMacUserHasNothingMore proves it,
// TestImagesAndSnapshotsOfAMacUser and all other tests with userStack work so.

// reportEnv names a file to which TestMain writes what was done on userStack.
const reportEnv = "APPLEVM_TEST_REPORT"

// report writes which tests used the stack, and what its clients did.
func (ss *sharedStack) report() error {
	name := os.Getenv(reportEnv)
	if name == "" {
		return nil
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	tests := slices.Sorted(maps.Keys(ss.tests))
	_, err = fmt.Fprintf(f, "The macOS way on Linux: uid %d, no capabilities, no mounts, in /dev only %s\n%d tests: %s\n",
		stack.Nobody, strings.Join(stack.BareDevices, " "), len(tests), strings.Join(tests, " "))
	return errors.Join(err, ss.s.WriteCounts(f), f.Close())
}

// field is a field of a process's status.
func field(t *testing.T, pid int, name string) string {
	t.Helper()
	for line := range strings.Lines(readAll(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	t.Fatalf("process %d has no %s", pid, name)
	return ""
}

// devices are the names in a process's /dev, as far as it has them beyond what is
// everywhere.
func devices(t *testing.T, pid int) []string {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/dev", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if !slices.Contains(append([]string{"pts", "shm", "ptmx", "fd"}, stack.BareDevices...), e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out
}

// TestMacUserHasNothingMore: what runs a container has no capability and no way to
// one, no device for networks or disks, and mounts nothing.
func TestMacUserHasNothingMore(t *testing.T) {
	if runtime.GOOS == "darwin" {
		t.Skip("a user of macOS has nothing more")
	}
	s := userStack(t)
	if !s.Unprivileged {
		t.Fatal("this test needs root on Linux, to take away from a user what macOS has not: run it with sudo")
	}
	mounts := func(pid int) string { return readAll(t, fmt.Sprintf("/proc/%d/mounts", pid)) }
	containerd := s.Containerd()
	// Of the host's, which other tests change too, those that the stack could have made.
	host := func() (own []string) {
		for l := range strings.Lines(mounts(os.Getpid())) {
			if strings.Contains(l, s.Dir) {
				own = append(own, l)
			}
		}
		return own
	}
	before := mounts(containerd)
	detached(t, s, "sleep", "1000")
	user := strconv.Itoa(stack.Nobody)
	pids := map[string]int{"containerd": containerd}
	for _, p := range append(s.Shims(), s.VMMs()...) {
		pids[p.Name] = p.PID
	}
	if len(pids) < 3 {
		t.Errorf("processes %v: want containerd, a shim and a machine", pids)
	}
	for name, pid := range pids {
		ids := strings.Repeat(" "+user, 4)[1:]
		for f, want := range map[string]string{"Uid": ids, "Gid": ids, "Groups": "", "CapPrm": strings.Repeat("0", 16), "CapBnd": strings.Repeat("0", 16), "NoNewPrivs": "1"} {
			if got := field(t, pid, f); got != want {
				t.Errorf("%s: %s is %q, want %q", name, f, got, want)
			}
		}
		if extra := devices(t, pid); len(extra) > 0 {
			t.Errorf("%s has the devices %q", name, extra)
		}
	}
	if after := mounts(containerd); after != before {
		t.Errorf("containerd's mounts were\n%s\nand are\n%s", before, after)
	}
	if own := host(); len(own) > 0 {
		t.Errorf("the host has the mounts %q", own)
	}
}

// What a user of macOS does with images, snapshots and a container's changes.
func TestImagesAndSnapshotsOfAMacUser(t *testing.T) {
	s := userStack(t)
	ctx := t.Context()
	ctr := func(args ...string) string {
		t.Helper()
		return must(t, s.Ctr(ctx, args...))
	}
	// has runs a command whose output is to have all of some texts.
	has := func(want []string, args ...string) {
		t.Helper()
		out := ctr(args...)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("ctr %s: got %s\nwant %q in it", strings.Join(args, " "), out, w)
			}
		}
	}
	ref := serveRegistry(t) + "/mac:one"
	ctr("image", "tag", img, ref)
	ctr("image", "push", "--plain-http", ref)
	ctr("image", "rm", "--sync", ref)
	ctr("image", "pull", "--plain-http", "--snapshotter", "applevm", ref)
	t.Cleanup(func() { _ = s.Ctr(context.Background(), "image", "rm", "--sync", ref, "mac:exported").Run() })
	has([]string{ref, "linux/"}, "image", "ls")
	has([]string{ref, "complete"}, "image", "check", "--snapshotter", "applevm")
	has([]string{"image.rootfs.diff.tar"}, "image", "inspect", ref)
	ctr("image", "usage", "--snapshotter", "applevm", ref)
	archive := filepath.Join(s.Dir, "tmp", "exported.tar")
	t.Cleanup(func() { _ = os.Remove(archive) })
	ctr("image", "export", archive, ref)
	ctr("image", "rm", "--sync", ref)
	ctr("image", "import", "--snapshotter", "applevm", archive)
	has([]string{"sha256:"}, "content", "ls", "-q")

	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	must(t, s.CtrRun(ctx, "-d", "--label", "of=a-mac-user", ref, id, "sh", "-c", "rm /etc/motd; echo new >/etc/new; sync; touch /ready; exec sleep 1000"))
	waitFor(t, "the container's changes", func() bool {
		return s.CtrExec(ctx, "--exec-id", "r", id, "test", "-e", "/ready").Run() == nil
	})
	has([]string{id, "io.containerd.applevm.v1"}, "container", "ls")
	has([]string{`"of": "a-mac-user"`, `"Snapshotter": "applevm"`}, "container", "info", id)
	has([]string{id, "RUNNING"}, "task", "ls")
	has([]string{"memory.usage", "pids.current"}, "task", "metrics", id)
	has([]string{"PID"}, "task", "ps", id)
	ctr("task", "pause", id)
	has([]string{id, "PAUSED"}, "task", "ls")
	ctr("task", "resume", id)
	has([]string{id, "Active"}, "snapshots", "--snapshotter", "applevm", "ls")
	has([]string{id, "Active"}, "snapshots", "--snapshotter", "applevm", "info", id)
	ctr("snapshots", "--snapshotter", "applevm", "usage", id)
	ctr("task", "kill", "--signal", "KILL", id)
	waitFor(t, "the end", func() bool { return strings.Contains(ctr("task", "ls"), "STOPPED") })
	_ = do(t, s.Ctr(ctx, "task", "delete", id)) // its exit code is the container's

	layer := entries(t, ctr("snapshots", "--snapshotter", "applevm", "diff", id))
	for _, want := range []string{"etc/.wh.motd", "etc/new", "ready"} {
		if !slices.Contains(layer, want) {
			t.Errorf("the container's changes are %q, want %s", layer, want)
		}
	}
	// A container of what it has left.
	must(t, s.Ctr(ctx, "task", "start", "--fifo-dir", s.Dir+"/fifo", "--detach", id))
	if got := must(t, s.CtrExec(ctx, "--exec-id", "n", id, "cat", "/etc/new")); got != "new\n" {
		t.Errorf("got %q", got)
	}
	has([]string{"Version:"}, "version")
	has([]string{"io.containerd.snapshotter.v1", "applevm", "ok"}, "plugins", "ls", "id==applevm")
}

// entries lists a layer.
func entries(t *testing.T, layer string) []string {
	t.Helper()
	z, err := gzip.NewReader(strings.NewReader(layer))
	if err != nil {
		t.Fatalf("%v in %d bytes", err, len(layer))
	}
	var out []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if !fs.ValidPath(strings.TrimSuffix(h.Name, "/")) {
			t.Errorf("entry %q", h.Name)
		}
		out = append(out, h.Name)
	}
}
