package virtiofs

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
)

func TestNamesThatAreNone(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755), os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	d, f := g.lookup(rootNode, "d"), g.lookup(rootNode, "f")
	for _, tt := range []struct {
		name string
		want syscall.Errno
	}{
		{"..", unix.EINVAL}, {".", unix.EINVAL}, {"", unix.EINVAL}, {"/", unix.EINVAL}, {"../outside", unix.EINVAL},
		{"d/x", unix.EINVAL}, {"/etc/passwd", unix.EINVAL}, {repeat("n", 256), unix.ENAMETOOLONG}, {repeat("../", 2000), unix.EINVAL},
	} {
		for what, ask := range map[string]func() syscall.Errno{
			"lookup": func() syscall.Errno { e, _ := g.ask(opLookup, d, pack(tt.name)); return e },
			"mkdir":  func() syscall.Errno { e, _ := g.ask(opMkdir, d, pack(uint64(0o755), tt.name)); return e },
			"mknod": func() syscall.Errno {
				e, _ := g.ask(opMknod, d, pack(uint32(0o100644), uint32(0), uint64(0), tt.name))
				return e
			},
			"create":  func() syscall.Errno { e, _, _ := g.create(d, tt.name, everyFlag, 0o644); return e },
			"unlink":  func() syscall.Errno { e, _ := g.ask(opUnlink, d, pack(tt.name)); return e },
			"symlink": func() syscall.Errno { e, _ := g.ask(opSymlink, d, pack(tt.name, "to")); return e },
			"link":    func() syscall.Errno { e, _ := g.ask(opLink, d, pack(f, tt.name)); return e },
			"rename":  func() syscall.Errno { e, _ := g.ask(opRename, d, pack(uint64(rootNode), tt.name, "to")); return e },
			"to":      func() syscall.Errno { e, _ := g.ask(opRename, rootNode, pack(d, "f", tt.name)); return e },
		} {
			if e := ask(); e != tt.want {
				t.Errorf("%s of %.20q: %v, want %v", what, tt.name, e, tt.want)
			}
		}
	}
	// A second name without its end.
	if e, _ := g.ask(opRename, rootNode, append(pack(d, "f"), "to"...)); e != unix.EIO {
		t.Errorf("a name without an end: %v", e)
	}
	if list, err := os.ReadDir(filepath.Join(dir, "d")); err != nil || len(list) > 0 {
		t.Errorf("made %v, %v", list, err)
	}
}

// A symbolic link is the guest's to follow: here it is never more than a text.
func TestLinksLeadNowhere(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.Symlink("../outside", filepath.Join(dir, "file")), os.Symlink("..", filepath.Join(dir, "up")),
		os.Symlink("/proc/self/root", filepath.Join(dir, "magic")))
	for _, name := range []string{"file", "up", "magic"} {
		e, b := g.ask(opLookup, rootNode, pack(name))
		if e != 0 || mode(b)&unix.S_IFMT != unix.S_IFLNK {
			t.Fatalf("%s: %v, mode %o", name, e, mode(b))
		}
		n := nodeIn(b)
		if e, _ := g.open(n, unix.O_RDWR); e != unix.EPERM {
			t.Errorf("open %s: %v", name, e)
		}
		if e, _ := g.ask(opOpendir, n, pack(uint64(0))); e != unix.ENOTDIR {
			t.Errorf("open the directory %s: %v", name, e)
		}
		if e := g.truncate(n, 0); e != unix.EPERM {
			t.Errorf("truncate %s: %v", name, e)
		}
		if e, _ := g.ask(opLookup, n, pack("outside")); e != unix.ENOTDIR {
			t.Errorf("look up in %s: %v", name, e)
		}
		if e, _, _ := g.create(rootNode, name, everyFlag, 0o644); e != unix.EPERM {
			t.Errorf("create over %s: %v", name, e)
		}
		if e, _ := g.ask(opSetxattr, n, pack(uint32(1), uint32(0), "user.x", []byte("1"))); e == 0 {
			t.Errorf("an attribute of a link, or of its target (%s)", name)
		}
	}
	if e, b := g.ask(opReadlink, g.lookup(rootNode, "file"), nil); e != 0 || string(b) != "../outside" {
		t.Errorf("readlink: %q, %v", b, e)
	}
	// Hard links and modes are the link's own too.
	if e, b := g.ask(opLink, rootNode, pack(g.lookup(rootNode, "file"), "again")); e != 0 || mode(b)&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("a hard link to a link: %v, mode %o", e, mode(b))
	}
	body := make([]byte, 88)
	binary.LittleEndian.PutUint32(body, 1)
	binary.LittleEndian.PutUint32(body[68:], 0o777)
	if e, _ := g.ask(opSetattr, g.lookup(rootNode, "file"), body); e == 0 {
		t.Error("a link's mode was set")
	}
	st, err := os.Stat(filepath.Join(filepath.Dir(dir), "outside"))
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("the file outside: %v, %v", st, err)
	}
}

// What a name stood for when the guest looked it up is what it has, whoever puts
// something else there.
func TestReplacedByALink(t *testing.T) {
	g, dir := newGuest(t, false)
	sub := filepath.Join(dir, "sub")
	must(t, os.Mkdir(sub, 0o755), os.WriteFile(filepath.Join(sub, "f"), []byte("mine"), 0o644))
	d := g.lookup(rootNode, "sub")
	f := g.lookup(d, "f")
	must(t, os.Rename(sub, sub+"2"), os.Symlink("..", sub), os.Remove(sub+"2/f"), os.Symlink("../../outside", sub+"2/f"))
	if e, _ := g.ask(opLookup, d, pack("outside")); e != 0 { // no such file: node 0
		t.Errorf("look up: %v", e)
	}
	e, h := g.open(f, unix.O_RDONLY)
	if e != 0 {
		t.Fatal(e)
	}
	if e, b := g.read(f, h, 0, 100); e != 0 || string(b) != "mine" {
		t.Errorf("read %q, %v", b, e)
	}
	if e, b := g.ask(opLookup, d, pack("outside")); e != 0 || nodeIn(b) != 0 {
		t.Errorf("found the file outside: %v", e)
	}
}

// FIFOs and devices are the guest's own to open: here the first would wait for ever, the
// second is the host's.
func TestOnlyFilesAreOpened(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
	names := []string{"fifo"}
	if os.Getuid() == 0 {
		if e, _ := g.ask(opMknod, rootNode, pack(uint32(unix.S_IFCHR|0o666), uint32(1<<8|3), uint64(0), "null")); e != 0 {
			t.Fatal(e)
		}
		names = append(names, "null")
	}
	for _, name := range names {
		n := g.lookup(rootNode, name)
		for _, flags := range []uint32{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_PATH, unix.O_DIRECTORY} {
			if e, _ := g.open(n, flags); e != unix.EPERM {
				t.Errorf("open %s with flags %#x: %v", name, flags, e)
			}
		}
		if e, _, _ := g.create(rootNode, name, unix.O_WRONLY, 0o644); e != unix.EPERM {
			t.Errorf("create over %s: %v", name, e)
		}
		if e := g.truncate(n, 0); e != unix.EPERM {
			t.Errorf("truncate %s: %v", name, e)
		}
	}
	if e, _ := g.open(rootNode, unix.O_RDONLY); e != unix.EISDIR {
		t.Errorf("open a directory as a file: %v", e)
	}
}

func TestNumbersThatWereNotGiven(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("text"), 0o644))
	f := g.lookup(rootNode, "f")
	_, h := g.open(f, unix.O_RDWR)
	for _, n := range []uint64{0, f + 100, 1 << 63, reservedNode} {
		if e, _ := g.ask(opGetattr, n, make([]byte, 16)); e != unix.ESTALE {
			t.Errorf("attributes of %d: %v", n, e)
		}
		if e, _ := g.ask(opLookup, n, pack("f")); e != unix.ESTALE {
			t.Errorf("look up in %d: %v", n, e)
		}
	}
	for _, n := range []uint64{0, h + 100, f, reservedNode} {
		if e, _ := g.read(f, n, 0, 10); e != unix.EBADF {
			t.Errorf("read from %d: %v", n, e)
		}
	}
	if e, _ := g.ask(opRelease, f, pack(h+100, uint64(0), uint64(0))); e != 0 {
		t.Errorf("release: %v", e)
	}
	if e, _ := g.ask(opReaddir, rootNode, pack(h, uint64(0), uint32(4096), uint32(0), uint64(0), uint64(0))); e != unix.ENOTDIR {
		t.Errorf("list a file: %v", e)
	}
	if e, _ := g.ask(opLookup, rootNode, pack(reservedName)); e != unix.ENOENT {
		t.Errorf("a name that the library keeps for itself: %v", e)
	}
}

func TestForget(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	f := g.lookup(rootNode, "f")
	if again := g.lookup(rootNode, "f"); again != f {
		t.Errorf("one file has the numbers %d and %d", f, again)
	}
	g.forget(f, 1)
	if e, _ := g.ask(opGetattr, f, make([]byte, 16)); e != 0 {
		t.Errorf("a file that was got twice and forgotten once: %v", e)
	}
	g.forget(f, 1<<62) // more than it got
	if e, _ := g.ask(opGetattr, f, make([]byte, 16)); e != unix.ESTALE {
		t.Errorf("a forgotten file: %v", e)
	}
	g.forget(f, 1)
	g.forget(rootNode, 1<<63)
	if n := g.lookup(rootNode, "f"); n == f {
		t.Error("a number was given twice")
	}
	if e, _ := g.ask(opBatchForget, 0, pack(uint32(1<<31), uint32(0), f+1, uint64(1))); e != 0 {
		t.Error(e)
	}
	if g.dev.fs.open != 1 {
		t.Errorf("%d descriptors, want the root's", g.dev.fs.open)
	}
}

func TestDescriptorsAreBounded(t *testing.T) {
	g, _ := newGuest(t, false)
	g.dev.fs.limit = 8
	for i := range 20 {
		if e, _ := g.ask(opMkdir, rootNode, pack(uint64(0o755), string(rune('a'+i)))); e != 0 {
			t.Fatal(e)
		}
	}
	if g.dev.fs.open != 8 {
		t.Errorf("%d descriptors", g.dev.fs.open)
	}
	// The root's own, and what is open, which does not sleep.
	var handle uint64
	for range 7 {
		e, b := g.ask(opOpendir, rootNode, pack(uint64(0)))
		if e != 0 {
			t.Fatal(e)
		}
		handle = nodeIn(b)
	}
	if e, _ := g.ask(opOpendir, rootNode, pack(uint64(0))); e != unix.ENFILE {
		t.Errorf("open: %v", e)
	}
	// The list is whole; those that do not fit come without their attributes.
	e, list := g.ask(opReaddirplus, rootNode, pack(handle, uint64(0), uint32(1<<16), uint32(0), uint64(0), uint64(0)))
	if e != 0 || strings.Count(string(list), "\x01\x00\x00\x00\x04\x00\x00\x00") != 21 { // names of one byte, directories, and "."
		t.Errorf("list: %v, %d bytes", e, len(list))
	}
}

// A guest that mounts anew has nothing of before.
func TestInitForgetsAll(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	f := g.lookup(rootNode, "f")
	_, h := g.open(f, unix.O_RDONLY)
	if e, _ := g.ask(opInit, 0, pack(uint32(7), uint32(31), uint32(0), uint32(0))); e != 0 {
		t.Fatal(e)
	}
	if e, _ := g.read(f, h, 0, 1); e != unix.EBADF {
		t.Errorf("read: %v", e)
	}
	if g.dev.fs.open != 1 {
		t.Errorf("%d descriptors", g.dev.fs.open)
	}
}

func TestRequestsThatAreNone(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("text"), 0o644))
	f := g.lookup(rootNode, "f")
	_, h := g.open(f, unix.O_RDWR)
	change := func(req []byte, at int, v ...byte) []byte {
		copy(req[at:], v)
		return req
	}
	read := func(size uint32) []byte {
		return g.request(opRead, f, pack(h, uint64(0), size, uint32(0), uint64(0), uint64(0)))
	}
	for _, tt := range []struct {
		name  string
		req   []byte
		space int
		want  syscall.Errno
		none  bool // no answer is possible
	}{
		{"no header", make([]byte, 39), 100, 0, true},
		{"no room for an answer", g.request(opGetattr, f, make([]byte, 16)), 15, 0, true},
		{"little room for an answer", g.request(opGetattr, f, make([]byte, 16)), 16, unix.EIO, false},
		{"too short", g.request(opGetattr, f, make([]byte, 15)), 1000, unix.EINVAL, false},
		{"wrong length", change(g.request(opGetattr, f, make([]byte, 16)), 0, 57), 1000, unix.EINVAL, false},
		{"extension", change(g.request(opGetattr, f, make([]byte, 16)), 36, 1), 1000, unix.EINVAL, false},
		{"unknown", g.request(4096, f, nil), 1000, unix.ENOSYS, false},
		{"not served", g.request(48, f, make([]byte, 100)), 1000, unix.ENOSYS, false},
		{"the library's own", g.request(100, f, make([]byte, 100)), 1000, unix.ENOSYS, false},
		{"read of too much", read(maxIO + 1), maxAnswer, unix.EINVAL, false},
		{"read of far too much", read(1 << 31), maxAnswer, unix.EINVAL, false},
		{"read without room", read(4096), 4096, unix.EIO, false},
		{"write of another length", g.request(opWrite, f, append(pack(h, uint64(0), uint32(5), uint32(0), uint64(0), uint64(0)), "1234"...)), 1000, unix.EINVAL, false},
		{"write at the end of all", g.request(opWrite, f, append(pack(h, ^uint64(0), uint32(1), uint32(0), uint64(0), uint64(0)), "1"...)), 1000, unix.EINVAL, false},
		{"long list of attributes", g.request(opListxattr, f, pack(uint32(1<<20), uint32(0))), maxAnswer, unix.EINVAL, false},
		{"attribute without a name", g.request(opSetxattr, f, append(pack(uint32(0), uint32(0)), "user.x"...)), 1000, unix.EINVAL, false},
		{"short forget", g.request(opForget, f, nil), 1000, 0, true},
		{"another version", g.request(opInit, 0, pack(uint32(8), uint32(0), uint64(0))), 1000, unix.EIO, false},
	} {
		out := g.dev.execute(tt.req, make([]byte, tt.space))
		if tt.none {
			if out != nil {
				t.Errorf("%s: answer % x", tt.name, out)
			}
			continue
		}
		if e, _ := g.raw(tt.req, tt.space); e != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, e, tt.want)
		}
	}
}

func TestXattrsOfTheHostStayItsOwn(t *testing.T) {
	g, dir := newGuest(t, false)
	file := filepath.Join(dir, "f")
	must(t, os.WriteFile(file, nil, 0o644))
	f := g.lookup(rootNode, "f")
	for _, name := range []string{"trusted.overlay.opaque", "security.selinux", "security.evm", "system.x", "", "user.", "user." + repeat("x", 300)} {
		if name == "user." {
			continue
		}
		if e, _ := g.ask(opSetxattr, f, pack(uint32(1), uint32(0), name, []byte("y"))); e != unix.EPERM {
			t.Errorf("set %.30q: %v", name, e)
		}
		if e, _ := g.ask(opRemovexattr, f, pack(name)); e != unix.EPERM {
			t.Errorf("remove %.30q: %v", name, e)
		}
	}
	if os.Getuid() == 0 {
		must(t, unix.Setxattr(file, "trusted.host", []byte("1"), 0))
	}
	if e, _ := g.ask(opSetxattr, f, pack(uint32(2), uint32(0), "user.a", []byte("12"))); e != 0 {
		t.Fatal(e)
	}
	if e, b := g.ask(opListxattr, f, pack(uint32(1000), uint32(0))); e != 0 || string(b) != "user.a\x00" {
		t.Errorf("list: %q, %v", b, e)
	}
	if e, b := g.ask(opListxattr, f, pack(uint32(0), uint32(0))); e != 0 || binary.LittleEndian.Uint32(b) != 7 {
		t.Errorf("length of the list: % x, %v", b, e)
	}
	if e, _ := g.ask(opListxattr, f, pack(uint32(3), uint32(0))); e != unix.ERANGE {
		t.Errorf("a short list: %v", e)
	}
	if e, _ := g.ask(opGetxattr, f, pack(uint32(10), uint32(0), "trusted.host")); e != unix.ENODATA {
		t.Errorf("get: %v", e)
	}
	if e, b := g.ask(opGetxattr, f, pack(uint32(10), uint32(0), "user.a")); e != 0 || string(b) != "12" {
		t.Errorf("get: %q, %v", b, e)
	}
}

// The parent of the shared directory is not shown, not even its number.
func TestListShowsNothingOfTheParent(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	_, b := g.ask(opOpendir, rootNode, pack(uint64(0)))
	h := nodeIn(b)
	var parent unix.Stat_t
	must(t, unix.Stat(filepath.Dir(dir), &parent))
	for _, op := range []uint32{opReaddir, opReaddirplus} {
		e, list := g.ask(op, rootNode, pack(h, uint64(0), uint32(4096), uint32(0), uint64(0), uint64(0)))
		if e != 0 || !strings.Contains(string(list), "..") {
			t.Fatalf("list: %v, %q", e, list)
		}
		if strings.Contains(string(list), string(binary.LittleEndian.AppendUint64(nil, parent.Ino))) {
			t.Error("the parent's inode number")
		}
	}
	// A position that the guest makes up.
	for _, at := range []uint64{1, 12345, 1 << 62, 1 << 63, ^uint64(0)} {
		if e, _ := g.ask(opReaddirplus, rootNode, pack(h, at, uint32(4096), uint32(0), uint64(0), uint64(0))); e != 0 && e != unix.EINVAL {
			t.Errorf("list from %d: %v", at, e)
		}
	}
	// In pieces that hold one entry each.
	var names []string
	for at := uint64(0); ; {
		e, list := g.ask(opReaddir, rootNode, pack(h, at, uint32(32), uint32(0), uint64(0), uint64(0)))
		if e != 0 {
			t.Fatal(e)
		}
		if len(list) == 0 {
			break
		}
		at = binary.LittleEndian.Uint64(list[8:])
		names = append(names, string(list[24:24+binary.LittleEndian.Uint32(list[16:])]))
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{".", "..", "d"}) {
		t.Errorf("names %q", names)
	}
}

func TestRenameFlags(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o644), os.WriteFile(filepath.Join(dir, "b"), []byte("b"), 0o644))
	rename := func(flags uint32) syscall.Errno {
		e, _ := g.ask(opRename2, rootNode, pack(uint64(rootNode), flags, uint32(0), "a", "b"))
		return e
	}
	if e := rename(unix.RENAME_NOREPLACE); e != unix.EEXIST {
		t.Error(e)
	}
	if e := rename(unix.RENAME_WHITEOUT); e != unix.EINVAL {
		t.Error(e)
	}
	if e := rename(unix.RENAME_EXCHANGE); e != 0 {
		t.Error(e)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(b) != "b" {
		t.Errorf("%q, %v", b, err)
	}
}

// userEnv makes the test binary the ordinary user of TestOrdinaryUser.
const userEnv = "APPLEVM_TEST_ORDINARY_USER"

// An ordinary user's server shares what the user can reach. On the host owners stay as they
// are, and no file gets set-ID bits.
func TestOrdinaryUser(t *testing.T) {
	if os.Getenv(userEnv) == "" && os.Getuid() == 0 {
		exe, err := os.Executable()
		must(t, err)
		tmp := t.TempDir()
		bin := filepath.Join(tmp, "test")
		b, err := os.ReadFile(exe)
		must(t, err, os.WriteFile(bin, b, 0o755), os.Chmod(tmp, 0o777), os.Chmod(filepath.Dir(tmp), 0o755))
		cmd := exec.Command(bin, "-test.run", "^TestOrdinaryUser$", "-test.v")
		cmd.Env = append(os.Environ(), userEnv+"=1", "TMPDIR="+tmp)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	g, dir := newGuest(t, false)
	g.uid, g.gid = 0, 0
	e, f, h := g.create(rootNode, "f", unix.O_RDWR|unix.O_CREAT, 0o6755)
	if e != 0 {
		t.Fatal(e)
	}
	if e := g.write(f, h, 0, []byte("text")); e != 0 {
		t.Error(e)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "f"), &st))
	if int(st.Uid) != os.Getuid() || st.Mode&0o7777 != 0o755 {
		t.Errorf("owner %d, mode %o", st.Uid, st.Mode)
	}
	if got := g.owner(f); got != "0:0:6755" {
		t.Errorf("the guest sees %s", got)
	}
	if e := g.setattr(f, 5, 6, -1); e != 0 || g.owner(f) != "5:6:755" {
		t.Errorf("chown: %v, %s", e, g.owner(f))
	}
	must(t, unix.Stat(filepath.Join(dir, "f"), &st))
	if int(st.Uid) != os.Getuid() {
		t.Errorf("owner %d after a chown", st.Uid)
	}
	if e, _ := g.ask(opMkdir, rootNode, pack(uint64(0o755), "d")); e != 0 {
		t.Errorf("mkdir: %v", e)
	}
}

func TestCopyIsBounded(t *testing.T) {
	g, _ := newGuest(t, false)
	_, a, from := g.create(rootNode, "a", everyFlag, 0o644)
	_, b, to := g.create(rootNode, "b", everyFlag, 0o644)
	if e := g.truncate(a, 100<<20); e != 0 {
		t.Fatal(e)
	}
	e, out := g.ask(opCopy, a, pack(from, uint64(0), b, to, uint64(0), ^uint64(0), uint64(0)))
	if e != 0 || binary.LittleEndian.Uint32(out) > maxCopy {
		t.Errorf("%v, % x", e, out)
	}
}

// What is mounted below a share is in it, also what is mounted later; or none of it is.
func TestMountsBelow(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount")
	}
	g, dir := newGuest(t, false)
	dev, err := New(vmm.Share{Path: dir, OneMount: true}, func(err error) { t.Error(err) })
	must(t, err)
	t.Cleanup(func() { must(t, dev.Close()) })
	one := &guest{t: t, dev: dev}
	below := filepath.Join(dir, "below")
	must(t, os.Mkdir(below, 0o755), unix.Mount("tmpfs", below, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(below, unix.MNT_DETACH) })
	must(t, os.WriteFile(filepath.Join(below, "f"), []byte("mounted"), 0o644))
	n := g.lookup(g.lookup(rootNode, "below"), "f")
	_, h := g.open(n, unix.O_RDONLY)
	if e, b := g.read(n, h, 0, 100); e != 0 || string(b) != "mounted" {
		t.Errorf("read %q, %v", b, e)
	}
	if e, _ := one.ask(opLookup, rootNode, pack("below")); e != unix.EACCES {
		t.Errorf("a mount that is not shared: %v", e)
	}
}
