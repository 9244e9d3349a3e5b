package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/e2e/stack"
)

// bindArg is ctr's flag for a bind mount.
func bindArg(source, dest string, options ...string) []string {
	return []string{"--mount", "type=bind,src=" + source + ",dst=" + dest + ",options=" + strings.Join(append([]string{"rbind"}, options...), ":")}
}

// Directories of the host are in a container as they are mounted: writable or not, one
// within another, beside file systems of the guest's own, and nothing beside them.
func TestBindMountsOfDirectories(t *testing.T) {
	s := userStack(t)
	top := filepath.Join(s.Dir, "tmp", "binds")
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("rw/from-host", "rw\n")
	write("ro/from-host", "ro\n")
	write("secret", "secret\n")
	if err := os.Symlink("../secret", filepath.Join(top, "rw/out")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"", "rw", "rw/from-host", "ro", "ro/from-host"} {
		giveToUser(t, filepath.Join(top, p))
	}
	var args []string
	args = append(args, "--rm")
	args = append(args, bindArg(top+"/rw", "/made/for/it")...)
	args = append(args, "--mount", "type=tmpfs,src=tmpfs,dst=/made/tmp")
	args = append(args, bindArg(top+"/ro", "/made/tmp/inner", "ro")...)
	args = append(args, bindArg(top+"/rw", "/ro-too", "ro")...)
	script := `cat /made/for/it/from-host /made/tmp/inner/from-host /ro-too/from-host
echo from the guest > /made/for/it/new && cat /ro-too/new
for f in /made/tmp/inner/new /made/tmp/inner/from-host /ro-too/new; do { echo x > $f; } 2>&1 | sed 's/.*: //'; done
mount -o remount,rw /made/tmp/inner 2>/dev/null; cat /made/for/it/out /made/for/it/../secret 2>&1 | sed 's/.*: //'
ls /made/for /made/tmp`
	out := must(t, s.CtrRun(t.Context(), append(append(args, img, name(t)), "bash", "-c", script)...))
	const ro, none = "Read-only file system\n", "No such file or directory\n"
	if want := "rw\nro\nrw\nfrom the guest\n" + ro + ro + ro + none + none + "/made/for:\nit\n\n/made/tmp:\ninner\n"; out != want {
		t.Errorf("got %s\nwant %s", out, want)
	}
	if b, err := os.ReadFile(filepath.Join(top, "rw/new")); err != nil || string(b) != "from the guest\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(top, "ro/from-host")); err != nil || string(b) != "ro\n" {
		t.Errorf("the read-only directory: %q, %v", b, err)
	}
	clean(t, s)
}

// sharingStack returns a shared stack, and a directory for its containers: root's, but with macOS's driver an
// ordinary user's, for it has none else.
func sharingStack(t *testing.T) (s *stack.Stack, dir string) {
	t.Helper()
	if withVZ() {
		s = userStack(t)
		return s, userDir(t, s, name(t))
	}
	return rootStack(t), t.TempDir()
}

// A file of the host is mounted alone: live, both ways, and with nothing of its
// directory.
func TestBindMountsOfFiles(t *testing.T) {
	s, dir := sharingStack(t)
	rw, ro := filepath.Join(dir, "rw"), filepath.Join(dir, "ro")
	for _, f := range []string{rw, ro, filepath.Join(dir, "sibling")} {
		write(t, f, filepath.Base(f))
	}
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	args := append(append([]string{"-d"}, bindArg(rw, "/new/rw")...), bindArg(ro, "/etc/motd", "ro")...)
	must(t, s.CtrRun(t.Context(), append(args, img, id, "sleep", "1000")...))
	inGuest := func(cmd string) string {
		return must(t, s.CtrExec(t.Context(), "--exec-id", "x", id, "sh", "-c", cmd))
	}
	if got := inGuest("cat /new/rw /etc/motd; ls /new; echo x 2>/dev/null >/etc/motd || echo refused; echo guest >/new/rw; rm /new/rw 2>/dev/null || echo busy"); got != "rwrorw\nrefused\nbusy\n" {
		t.Errorf("got %q", got)
	}
	if b, err := os.ReadFile(rw); err != nil || string(b) != "guest\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	if err := os.WriteFile(ro, []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the host's change", func() bool { return inGuest("cat /etc/motd") == "changed" })
	if b, err := os.ReadFile(filepath.Join(dir, "sibling")); err != nil || string(b) != "sibling" {
		t.Errorf("the file beside: %q, %v", b, err)
	}
}

// The host and a container see each other's changes while both run.
func TestBindMountsAreCoherent(t *testing.T) {
	s, dir := sharingStack(t)
	file := filepath.Join(dir, "file")
	write(t, file, "one")
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	must(t, s.CtrRun(t.Context(), append(append([]string{"-d"}, bindArg(dir, "/data")...), img, id, "sleep", "1000")...))
	inGuest := func(cmd string) string {
		return must(t, s.CtrExec(t.Context(), "--exec-id", "x", id, "sh", "-c", cmd))
	}
	if got := inGuest("cat /data/file"); got != "one" {
		t.Errorf("got %q", got)
	}
	if err := os.WriteFile(file, []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "late"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the host's change", func() bool { return inGuest("cat /data/file; ls /data") == "anotherfile\nlate\n" })
	inGuest("echo guest > /data/file; chown 12:34 /data/file")
	var st unix.Stat_t
	if b, err := os.ReadFile(file); err != nil || string(b) != "guest\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	uid, gid := uint32(12), uint32(34)
	if withVZ() { // an ordinary user gives nothing away
		uid, gid = uint32(os.Getuid()), uint32(os.Getgid())
		if uid == 0 {
			uid, gid = stack.Nobody, stack.Nobody
		}
	}
	if err := unix.Stat(file, &st); err != nil || st.Uid != uid || st.Gid != gid {
		t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
	}
}

// More directories than the smallest machine has room for.
func TestManyBindMounts(t *testing.T) {
	s := rootStack(t)
	args, want := []string{"--rm"}, ""
	for i := range 20 {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "file"), fmt.Appendf(nil, "%d\n", i), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, bindArg(dir, fmt.Sprintf("/many/%02d", i), "ro")...)
		want += fmt.Sprintf("%d\n", i)
	}
	if got := must(t, s.CtrRun(t.Context(), append(args, img, name(t), "sh", "-c", "cat /many/*/file")...)); got != want {
		t.Errorf("got %q", got)
	}
	if left := s.Clean(t.Context()); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
