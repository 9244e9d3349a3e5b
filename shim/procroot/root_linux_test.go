package procroot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/agent/rootfiles"
	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/internal/treelist"
)

// show returns a path by which the file system that answers with call is seen. Only
// other processes may open something there: Go's poller and its forks wait for the
// answer in ways that may keep this process from giving it.
func show(t *testing.T, call Call) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	r, err := New()
	if err != nil || r == nil {
		t.Fatal(r, err)
	}
	t.Cleanup(func() {
		r.Close()
		r.server.Wait() // it ends with the last that has the file system open
	})
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.Mount.Fd())
	run(t, "", "sh", "-ec", `[ -d "$0/" ]; [ -z "$(ls -A "$0/")" ]`, path) // before there is a container
	r.maxEntries = 3 * api.MaxFileEntries                                  // an endless directory ends sooner
	r.Attach(call)
	return path
}

// agent answers as a guest's agent does for a container with this root directory.
func agent(t *testing.T, dir string) Call {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func(_ context.Context, req *guestv1.FileRequest) (*guestv1.FileResponse, error) {
		return rootfiles.Do(fd, req), nil
	}
}

const sample = `
umask 022
mkdir -p dir/sub empty
echo text > dir/file; chmod 4750 dir/file; chown 1000:2000 dir/file
ln dir/file dir/sub/hard
ln -s ../file dir/sub/link; ln -s /nowhere/at/all dangling
mkfifo -m 600 pipe; mknod null c 1 3; chmod 666 null
printf '' > "$(printf 'not-utf8-\377')"
head -c 3000000 /dev/urandom > big
truncate -s 5M sparse; printf end >> sparse
cp big attr
touch -d '1969-07-20 20:17:40.123456789 UTC' -h dangling; touch -d '1969-07-20 20:17:40.123456789 UTC' old
chmod 1777 empty
`

// A tree is the same after it was copied in and out again by the tools that clients use.
func TestTarThroughIt(t *testing.T) {
	from, in, out := t.TempDir(), t.TempDir(), t.TempDir()
	run(t, from, "sh", "-ec", sample)
	if err := unix.Setxattr(filepath.Join(from, "attr"), "user.note", []byte("remember"), 0); err != nil {
		t.Fatal(err)
	}
	path := show(t, agent(t, in))
	run(t, from, "sh", "-ec", `tar --format=posix -cf - --xattrs . | tar -xf - --xattrs -C "$0"`, path)
	compareTrees(t, "in the container", from, in)
	run(t, "", "sh", "-ec", `cd "$1"; tar --format=posix -cf - --xattrs . | tar -xf - --xattrs -C "$0"`, out, path)
	compareTrees(t, "out of it again", from, out)
}

func TestOperations(t *testing.T) {
	dir := t.TempDir()
	path := show(t, agent(t, dir))
	// More than one answer holds.
	run(t, dir, "sh", "-ec", "mkdir many; cd many; seq 5000 | xargs touch")
	run(t, "", "sh", "-ec", `cd "$0"
[ "$(ls many | sort -n | md5sum)" = "$(seq 5000 | md5sum)" ]
echo one > f; echo two >> f; [ "$(cat f)" = "one
two" ]
echo three > f; [ "$(cat f)" = three ]
mkdir d; mv f d/g; [ "$(cat d/g)" = three ]
ln -s g d/l; [ "$(cat d/l)" = three ]; [ "$(readlink d/l)" = g ]
cp -a d e; rm -r d; [ ! -e d ]; [ "$(cat e/g)" = three ]
truncate -s 2 e/g; [ "$(cat e/g)" = th ]
[ $(stat -f -c %b .) -gt 0 ]
! rmdir e 2>/dev/null; ! mkdir e 2>/dev/null; ! cat nosuch 2>/dev/null
chmod 600 e/g; chown 5:6 e/g; [ "$(stat -c %a:%u:%g e/g)" = 600:5:6 ]
`, path)
	file, value := filepath.Join(path, "e/g"), make([]byte, 10)
	if err := unix.Setxattr(file, "user.a", []byte("b"), unix.XATTR_CREATE); err != nil {
		t.Error(err)
	}
	if err := unix.Setxattr(file, "user.a", []byte("b"), unix.XATTR_CREATE); err != unix.EEXIST {
		t.Error(err)
	}
	if n, err := unix.Listxattr(file, value); err != nil || string(value[:n]) != "user.a\x00" {
		t.Errorf("%q, %v", value[:max(n, 0)], err)
	}
	if n, err := unix.Getxattr(file, "user.a", value); err != nil || string(value[:n]) != "b" {
		t.Errorf("%q, %v", value[:max(n, 0)], err)
	}
	if err := unix.Removexattr(file, "user.a"); err != nil {
		t.Error(err)
	}
	if _, err := unix.Getxattr(file, "user.a", value); err != unix.ENODATA {
		t.Error(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "e/g"))
	if err != nil || string(got) != "th" {
		t.Errorf("%q, %v", got, err)
	}
}

// A link that leads out of the container leads to no file of the host.
func TestLinksStayInside(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Symlink("/", filepath.Join(dir, "up")), os.Symlink("../../../..", filepath.Join(dir, "out"))); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, path := range []string{"up/etc", "out/etc", "../etc", "a/../../etc", "/etc", "..", "up/"} {
		for _, req := range []*guestv1.FileRequest{
			{Operation: &guestv1.FileRequest_Stat{Stat: &guestv1.FileStat{}}},
			{Operation: &guestv1.FileRequest_List{List: &guestv1.FileList{}}},
			{Operation: &guestv1.FileRequest_Read{Read: &guestv1.FileRead{Size: 1}}},
			{Operation: &guestv1.FileRequest_Make{Make: &guestv1.FileMake{Mode: unix.S_IFREG | 0o600}}},
		} {
			req.Path = []byte(path)
			if resp := rootfiles.Do(fd, req); resp.GetErrno() == 0 {
				t.Errorf("%s: %T succeeded: %v", path, req.Operation, resp)
			}
		}
	}
}

// Whatever a guest answers, the host's client gets an error and nothing else happens.
func TestHostileGuest(t *testing.T) {
	attr := func(mode uint32) *guestv1.FileResponse {
		return &guestv1.FileResponse{Attr: &guestv1.FileAttr{Mode: mode, Ino: 7, Size: 1 << 62, Rdev: ^uint64(0), AtimeNs: -1 << 63}}
	}
	for name, answer := range map[string]func(*guestv1.FileRequest) (*guestv1.FileResponse, error){
		"errors":  func(*guestv1.FileRequest) (*guestv1.FileResponse, error) { return nil, errors.New("no") },
		"nothing": func(*guestv1.FileRequest) (*guestv1.FileResponse, error) { return &guestv1.FileResponse{}, nil },
		"no errno": func(*guestv1.FileRequest) (*guestv1.FileResponse, error) {
			return &guestv1.FileResponse{Errno: 1 << 31}, nil
		},
		"unknown type": func(*guestv1.FileRequest) (*guestv1.FileResponse, error) { return attr(0o170644), nil },
		"too much": func(req *guestv1.FileRequest) (*guestv1.FileResponse, error) {
			r := attr(unix.S_IFREG | 0o644)
			r.Data = bytes.Repeat([]byte("x"), 2*api.MaxFileData)
			return r, nil
		},
		"names": func(req *guestv1.FileRequest) (*guestv1.FileResponse, error) {
			r := attr(unix.S_IFDIR | 0o755)
			for _, n := range []string{"../../etc/passwd", "a\x00b", "", ".", strings.Repeat("n", 300)} {
				r.Entries = append(r.Entries, &guestv1.DirectoryEntry{Name: []byte(n), Cookie: 1})
			}
			return r, nil
		},
		"endless": func(req *guestv1.FileRequest) (*guestv1.FileResponse, error) {
			r := attr(unix.S_IFDIR | 0o755)
			for range api.MaxFileEntries {
				r.Entries = append(r.Entries, &guestv1.DirectoryEntry{Name: []byte("again"), Cookie: 1})
			}
			return r, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := show(t, func(_ context.Context, req *guestv1.FileRequest) (*guestv1.FileResponse, error) { return answer(req) })
			if out, err := output(t, "cat", path+"/f"); err == nil {
				t.Errorf("reading gave %d bytes", len(out))
			}
			if out, err := output(t, "ls", "-1fA", path+"/"); err == nil {
				t.Errorf("listing gave %d bytes", len(out))
			}
			if out, err := output(t, "readlink", path+"/l"); err == nil {
				t.Errorf("readlink gave %q", out)
			}
			buf := make([]byte, 10)
			if n, err := unix.Getxattr(path+"/x", "user.x", buf); err == nil && n > len(buf) {
				t.Errorf("getxattr gave %d bytes", n)
			}
		})
	}
}

// FuzzAnswers gives the directory reader and the attributes what a guest could send.
func FuzzAnswers(f *testing.F) {
	f.Add(uint32(unix.S_IFDIR|0o755), uint64(1), []byte("name"), int64(3), uint32(0))
	f.Add(uint32(0), uint64(0), []byte("../x"), int64(-1), uint32(200))
	f.Fuzz(func(t *testing.T, mode uint32, ino uint64, name []byte, cookie int64, errno uint32) {
		r := &Root{}
		r.Attach(func(context.Context, *guestv1.FileRequest) (*guestv1.FileResponse, error) {
			return &guestv1.FileResponse{Errno: errno, Entries: []*guestv1.DirectoryEntry{{Name: name, Cookie: cookie, Type: mode, Ino: ino}}}, nil
		})
		l := &listing{n: &node{root: r}, left: 10}
		if errno := l.fill(context.Background()); errno == 0 {
			for range 20 {
				if !l.HasNext() {
					break
				}
				e, errno := l.Next()
				if errno != 0 {
					break
				}
				if !isName(e.Name) || filepath.Base(e.Name) != e.Name {
					t.Errorf("name %q", e.Name)
				}
			}
		}
		a := &guestv1.FileAttr{Mode: mode, Ino: ino, Dev: uint64(cookie)}
		if id, ok := identity(string(name), a); ok && (id.Mode&^unix.S_IFMT != 0 || id.Ino < 2) {
			t.Errorf("%+v", id)
		}
		_ = syscall.Errno(errno)
	})
}

func compareTrees(t *testing.T, what, want, got string) {
	t.Helper()
	a, err := treelist.List(want, treelist.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := treelist.List(got, treelist.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(a) < 10 || len(a) != len(b) {
		t.Fatalf("%s are %d files, want %d", what, len(b), len(a))
	}
	for i := range a[1:] { // the top directory was there before
		if a[i+1] != b[i+1] {
			t.Errorf("%s: %s\nwant %s", what, b[i+1], a[i+1])
		}
	}
}

// output runs a program and returns what it prints.
func output(t *testing.T, argv ...string) ([]byte, error) {
	t.Helper()
	return exec.CommandContext(t.Context(), argv[0], argv[1:]...).Output()
}

// run runs a program. dir may not be in a file system that this process serves: it waits
// for its child to enter it, and can serve nothing while it does.
func run(t *testing.T, dir string, argv ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
}
