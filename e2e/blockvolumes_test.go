package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A container has an ext4 image as a disk of its own. What it was told to be stored is there
// after it was killed, and nobody else can write to it meanwhile.
func TestBlockVolume(t *testing.T) {
	s := userStack(t)
	dir, acks := userDir(t, s, "bv"), userDir(t, s, "acks")
	image := filepath.Join(dir, "v.img")
	must(t, exec.Command(filepath.Join(s.Dir, "bin", "applevm-snapshotter"), "volume", image, "8G"))
	giveToUser(t, image)
	mount := func(options string) []string {
		return []string{"--mount", "type=ext4,src=" + image + ",dst=/var/lib/data,options=" + options}
	}
	run := func(options, id, script string) result {
		return do(t, s.CtrRun(t.Context(), append(append([]string{"--rm"}, mount(options)...), img, name(t)+id, "sh", "-ec", script)...))
	}
	if r := run("rw:noatime", "1", "cd /var/lib/data; df -k . | tail -n 1 | tr -s ' ' | cut -d' ' -f2; touch -d @7 old; chown 5:6 old; chmod 4750 old; grep ' /var/lib/data ' /proc/mounts | grep -c 'ext4.*noatime'"); r.code != 0 ||
		!strings.HasSuffix(r.stdout, "\n1\n") {
		t.Errorf("the first use: %s", r)
	} else if kib, _ := strconv.Atoi(strings.Fields(r.stdout)[0]); kib < 7<<20 {
		t.Errorf("it has %d KiB", kib)
	}

	id := background(t, s, append(mount("rw"), bindArg(acks, "/acks")...), "bash", "-c",
		`i=0; while :; do i=$((i+1)); echo line $i >>/var/lib/data/log; sync /var/lib/data/log; echo $i >/acks/new; mv /acks/new /acks/last; done`)
	stored := func() int {
		b, _ := os.ReadFile(filepath.Join(acks, "last"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		return n
	}
	waitFor(t, "some lines", func() bool { return stored() >= 20 })
	for _, options := range []string{"rw", "ro"} {
		if r := run(options, options, "true"); r.code == 0 || !strings.Contains(r.stderr, image) || !strings.Contains(r.stderr, "in use") {
			t.Errorf("a second container, %s: %s", options, r)
		}
	}
	for _, p := range s.VMMs() { // as hard as it gets
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the end", func() bool { return len(s.VMMs()) == 0 })
	n := stored()
	_ = s.Ctr(t.Context(), "task", "delete", "--force", id).Run()
	if r := run("ro", "5", "true"); r.code == 0 || !strings.Contains(r.stderr, "mount it writable once") {
		t.Errorf("read-only after a kill: %s", r)
	}
	r := run("rw", "2", "cd /var/lib/data; stat -c '%Y %u:%g %a' old; cat log")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if r.code != 0 || lines[0] != "7 5:6 4750" || len(lines)-1 < n {
		t.Fatalf("%d lines were stored, %d are there: exit code %d, %q, %s", n, len(lines)-1, r.code, lines[0], r.stderr)
	}
	for i, l := range lines[1 : n+1] {
		if want := fmt.Sprintf("line %d", i+1); l != want {
			t.Fatalf("%q, want %q", l, want)
		}
	}
	if r := run("ro", "3", "cd /var/lib/data; { echo x >>log; } 2>&1 | grep -o 'Read-only.*'; tail -n 1 log"); r.stdout != "Read-only file system\n"+lines[len(lines)-1]+"\n" {
		t.Errorf("read-only: %s", r)
	}
	if b, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, b)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	image = filepath.Join(dir, "text")
	fails(t, s.CtrRun(t.Context(), append(append([]string{"--rm"}, mount("rw")...), img, name(t)+"4", "true")...),
		"mount the image "+image+" at /var/lib/data", "applevm-snapshotter volume")
}
