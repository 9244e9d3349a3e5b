package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/applevm/applevm/guest/agent/agenttest"
	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

func write(t *testing.T, dir, name, content string, mode os.FileMode) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// output runs a shell script in a container of its own.
func output(t *testing.T, h *host, fs *guestv1.Rootfs, script string, change func(*agenttest.Config)) string {
	t.Helper()
	c := agenttest.Config{ID: "out", Args: []string{"sh", "-c", script}}
	if change != nil {
		change(&c)
	}
	r := h.Start(c, fs)
	r.Finish()
	r.MustDelete()
	return r.Stdout.String() + r.Stderr.String()
}

func TestLayersAreStacked(t *testing.T) {
	h := newHost(t)
	base := h.Layer("base", func(d string) {
		agenttest.Busybox(t)(d)
		write(t, d, "keep", "base", 0o644)
		write(t, d, "change", "base", 0o644)
		write(t, d, "gone", "base", 0o644)
		write(t, d, "dir/old", "base", 0o644)
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	})
	top := h.Layer("top", func(d string) {
		write(t, d, "change", "top", 0o644)
		write(t, d, "dir/new", "top", 0o644)
		if err := unix.Mknod(filepath.Join(d, "gone"), unix.S_IFCHR, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(filepath.Join(d, "dir"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	})
	look := "cat /keep /change; ls /gone 2>&1; ls /dir; ls /lost+found 2>&1"
	want := "basetopls: /gone: No such file or directory\nnew\nls: /lost+found: No such file or directory\n"
	lower := []*guestv1.Tree{base, top}
	t.Run("read-only", func(t *testing.T) {
		if got := output(t, h, &guestv1.Rootfs{Lower: lower}, look+"; touch /x", nil); got != want+"touch: /x: Read-only file system\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("writable", func(t *testing.T) {
		fs := &guestv1.Rootfs{Lower: lower, Writable: h.Writable("rw")}
		if got := output(t, h, fs, look+"; ls -ld / | head -c 10; echo x >>/keep; rm /change; mkdir /made", nil); got != want+"drwx--x--x" {
			t.Errorf("got %q", got)
		}
		// What was written is still there, and where the host looks for it.
		if got := output(t, h, fs, "cat /keep; ls -d /made; ls /change", nil); got != "basex\n/made\nls: /change: No such file or directory\n" {
			t.Errorf("got %q", got)
		}
		dev, err := h.attach(t.Context(), "rw")
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := unix.Mount(dev, dir, "ext4", unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(dir, 0) }()
		if b, err := os.ReadFile(filepath.Join(dir, "upper/keep")); string(b) != "basex\n" {
			t.Errorf("upper/keep has %q, %v", b, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, "upper/change"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("upper/change is no whiteout: %v, %v", st, err)
		}
	})
	t.Run("one layer", func(t *testing.T) {
		if got := output(t, h, &guestv1.Rootfs{Lower: lower[:1]}, "cat /keep; touch /x", nil); got != "basetouch: /x: Read-only file system\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("shared by two containers", func(t *testing.T) {
		box := h.Box(&guestv1.Rootfs{Lower: lower})
		if got := output(t, h, &guestv1.Rootfs{Lower: lower}, "cat /keep", nil); got != "base" {
			t.Errorf("got %q", got)
		}
		if err := box.Kill(unix.SIGKILL, false); err != nil {
			t.Fatal(err)
		}
		box.Finish()
		box.MustDelete()
	})
	t.Run("only a writable tree", func(t *testing.T) {
		// Nothing is in it, but the root file system itself must come up.
		_, err := h.Create(agenttest.Config{ID: "w", Args: []string{"/bin/true"}}, &guestv1.Rootfs{Writable: h.Writable("rw2")})
		if err == nil || !strings.Contains(err.Error(), "stat /bin/true: no such file or directory") {
			t.Errorf("error %v", err)
		}
	})
}

func TestDeepestImage(t *testing.T) {
	h := newHost(t)
	// As many trees as an image may have layers, all on one disk: the number
	// of loop devices is not the point.
	all := h.Layer("all", func(d string) {
		for i := range maxLayers - 1 {
			write(t, d, fmt.Sprintf("tree%d/file%d", i, i), "x", 0o644)
			write(t, d, fmt.Sprintf("tree%d/top", i), fmt.Sprint(i), 0o644)
		}
	})
	fs := &guestv1.Rootfs{Lower: []*guestv1.Tree{h.Layer("base", agenttest.Busybox(t))}, Writable: h.Writable("rw")}
	for i := range maxLayers - 1 {
		fs.Lower = append(fs.Lower, &guestv1.Tree{Disk: all.Disk, FsType: "ext4", Directory: fmt.Sprintf("root/tree%d", i)})
	}
	if got := output(t, h, fs, "cat /top; ls / | grep -c file", nil); got != "125126\n" {
		t.Errorf("got %q", got)
	}
	fs.Lower = append(fs.Lower, fs.Lower[1])
	_, err := h.Create(agenttest.Config{ID: "deep", Args: []string{"true"}}, fs)
	wantCode(t, err, codes.InvalidArgument)
}

func TestBadRootfs(t *testing.T) {
	h := newHost(t)
	good := h.Layer("good", func(d string) {
		agenttest.Busybox(t)(d)
		if err := os.Symlink("/etc", filepath.Join(d, "link")); err != nil {
			t.Fatal(err)
		}
	})
	write(t, h.Dir, "noise.img", strings.Repeat("noise", 100_000), 0o644)
	h.AddImage(agenttest.Image{Serial: "noise", Path: filepath.Join(h.Dir, "noise.img"), ReadOnly: true})
	tree := func(disk, fsType, dir string) *guestv1.Rootfs {
		return &guestv1.Rootfs{Lower: []*guestv1.Tree{{Disk: disk, FsType: fsType, Directory: dir}}}
	}
	for _, tc := range []struct {
		name string
		fs   *guestv1.Rootfs
		want string
	}{
		{"none", nil, "no trees"},
		{"damaged", tree("noise", "ext4", ""), `mount disk "noise"`},
		{"not attached", tree("absent", "ext4", ""), `disk "absent" is not attached`},
		{"no disk ID", tree("../good", "ext4", ""), "no disk ID"},
		{"long disk ID", tree(strings.Repeat("x", 21), "ext4", ""), "no disk ID"},
		{"file system", tree("good", "ntfs", ""), "not supported"},
		{"directory outside", tree("good", "ext4", "root/../../etc"), "directory"},
		{"absolute directory", tree("good", "ext4", "/etc"), "directory"},
		{"directory behind a symlink", tree("good", "ext4", "root/link"), "directory"},
		{"no such directory", tree("good", "ext4", "other"), "no such file or directory"},
		{"share and trees", &guestv1.Rootfs{Lower: []*guestv1.Tree{good}, Share: &guestv1.Share{Tag: "root"}}, "and has trees"},
		{"no share's tag", &guestv1.Rootfs{Share: &guestv1.Share{Tag: "a,b"}}, "no share's tag"},
		{"no such share", &guestv1.Rootfs{Share: &guestv1.Share{Tag: "absent"}}, `shares as "absent"`},
		{"one good, one bad", &guestv1.Rootfs{Lower: []*guestv1.Tree{good, {Disk: "noise", FsType: "ext4"}}}, "noise"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := h.Create(agenttest.Config{ID: "bad", Args: []string{"true"}}, tc.fs)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
			if left := mountsBelow(t, h.Dir); len(left) > 0 {
				t.Errorf("mounts left: %q", left)
			}
		})
	}
	t.Run("writable disk of two containers", func(t *testing.T) {
		rw := h.Writable("rw")
		h.Box(&guestv1.Rootfs{Lower: []*guestv1.Tree{good}, Writable: rw})
		_, err := h.Create(agenttest.Config{ID: "second", Args: []string{"true"}}, &guestv1.Rootfs{Lower: []*guestv1.Tree{good}, Writable: rw})
		wantCode(t, err, codes.FailedPrecondition)
	})
}

func TestFiles(t *testing.T) {
	h := newHost(t)
	fs := &guestv1.Rootfs{Lower: []*guestv1.Tree{h.Layer("base", func(d string) {
		agenttest.Busybox(t)(d)
		write(t, d, "etc/hosts", "of the image\n", 0o644)
		if err := os.Symlink("/../../../../run", filepath.Join(d, "evil")); err != nil {
			t.Fatal(err)
		}
	})}, Writable: h.Writable("rw")}
	files := func(fs ...*guestv1.File) func(*agenttest.Config) {
		return func(c *agenttest.Config) {
			c.Options = func(o *guestv1.ContainerOptions) { o.Files = fs }
		}
	}
	got := output(t, h, fs, "cat /etc/hosts /made/by/us; ls -ln /etc/hosts | cut -c1-10; echo y >>/etc/hosts && cat /etc/hosts; echo z >/made/by/us; cat /evil/f", files(
		&guestv1.File{Path: "/etc/hosts", Content: []byte("x\n"), Mode: 0o640, Gid: 6},
		&guestv1.File{Path: "/made/by/us", Content: []byte("ro\n"), Mode: 0o600, ReadOnly: true},
		&guestv1.File{Path: "/evil/f", Content: []byte("inside\n"), Mode: 0o644},
	))
	want := "x\nro\n-rw-r-----\nx\ny\ninside\nsh: can't create /made/by/us: Read-only file system\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := os.Stat("/run/f"); err == nil {
		t.Error("a symlink in the image led a file out of the container")
	}
	// The image's own file is untouched.
	if got := output(t, h, fs, "cat /etc/hosts", nil); got != "of the image\n" {
		t.Errorf("got %q", got)
	}
	// A root file system that takes no changes goes without what it has no place for.
	ro := &guestv1.Rootfs{Lower: fs.Lower}
	got = output(t, h, ro, "cat /etc/hosts; ls /etc/hostname 2>&1", files(
		&guestv1.File{Path: "/etc/hosts", Content: []byte("x\n"), Mode: 0o644, Optional: true},
		&guestv1.File{Path: "/etc/hostname", Content: []byte("x\n"), Mode: 0o644, Optional: true},
	))
	if got != "x\nls: /etc/hostname: No such file or directory\n" {
		t.Errorf("got %q", got)
	}
	for name, f := range map[string]*guestv1.File{
		"relative": {Path: "etc/hosts"},
		"root":     {Path: "/.."},
		"too long": {Path: "/x", Content: make([]byte, 1<<20+1)},
	} {
		c := agenttest.Config{ID: "f", Args: []string{"true"}}
		files(f)(&c)
		_, err := h.Create(c, fs)
		t.Log(name)
		wantCode(t, err, codes.InvalidArgument)
	}
}

// Files that were made for a container get new content, which it sees where it has them.
func TestSetFile(t *testing.T) {
	h := newHost(t)
	c := agenttest.Config{ID: "f", Stdin: true, Args: []string{"sh", "-c", "while read f; do cat $f; echo .; done"}}
	c.Options = func(o *guestv1.ContainerOptions) {
		o.Files = []*guestv1.File{{Path: "/etc/hosts", Content: []byte("first, long\n"), Mode: 0o644}, {Path: "/ro", Mode: 0o644, ReadOnly: true}}
	}
	r := h.Start(c, h.System())
	want := ""
	for _, f := range []struct{ path, content string }{{"/etc/hosts", "short\n"}, {"/ro", "longer than nothing\n"}, {"/etc/hosts", ""}, {"/etc/hosts", "again\n"}} {
		_, err := h.Guest.SetFile(agenttest.Context(t), &guestv1.SetFileRequest{ContainerId: agenttest.Prefix + "f", Path: f.path, Content: []byte(f.content)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintln(r.In, f.path); err != nil {
			t.Fatal(err)
		}
		want += f.content + ".\n"
		r.Stdout.WaitFor(t, want)
	}
	for _, tt := range []struct {
		id, path string
		content  []byte
		want     codes.Code
	}{
		{"f", "/etc/passwd", nil, codes.NotFound},
		{"f", "", nil, codes.NotFound},
		{"other", "/etc/hosts", nil, codes.NotFound},
		{"f", "/etc/hosts", make([]byte, api.MaxFile+1), codes.InvalidArgument},
	} {
		_, err := h.Guest.SetFile(agenttest.Context(t), &guestv1.SetFileRequest{ContainerId: agenttest.Prefix + tt.id, Path: tt.path, Content: tt.content})
		wantCode(t, err, tt.want)
	}
	if err := r.In.Close(); err != nil {
		t.Fatal(err)
	}
	if code := r.Finish(); code != 0 || r.Stdout.String() != want {
		t.Errorf("exit %d, %q", code, r.Stdout)
	}
	r.MustDelete()
}

func TestUserOfHostileImage(t *testing.T) {
	h := newHost(t)
	// The machine's own /etc/passwd would resolve the name.
	if err := os.WriteFile("/run/passwd", []byte("app:x:4242:4242::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove("/run/passwd")
	for name, passwd := range map[string]func(p string) error{
		"symlink out": func(p string) error { return os.Symlink("../../../../../../../../run/passwd", p) },
		"fifo":        func(p string) error { return unix.Mkfifo(p, 0o644) },
		"directory":   func(p string) error { return os.Mkdir(p, 0o755) },
		"none":        func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			serial := strings.ReplaceAll(name, " ", "-")
			fs := &guestv1.Rootfs{Lower: []*guestv1.Tree{h.Layer(serial, func(d string) {
				agenttest.Busybox(t)(d)
				p := filepath.Join(d, "etc/passwd")
				if err := os.Remove(p); err != nil {
					t.Fatal(err)
				}
				if err := passwd(p); err != nil {
					t.Fatal(err)
				}
			})}}
			_, err := h.Create(agenttest.Config{ID: "u", Args: []string{"id"}, Spec: func(s *specs.Spec) { s.Process.User.Username = "app" }}, fs)
			if err == nil || !strings.Contains(err.Error(), "user") {
				t.Errorf("error %v, want one about the user", err)
			}
		})
	}
}
