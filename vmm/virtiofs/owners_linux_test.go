package virtiofs

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// owner asks for a file's owner, group and permissions.
func (g *guest) owner(node uint64) string {
	g.t.Helper()
	e, b := g.ask(opGetattr, node, make([]byte, 16))
	if e != 0 {
		g.t.Fatal(e)
	}
	attr := b[16:] // struct fuse_attr_out: mode, nlink, uid and gid after 60 bytes of the attributes
	le := binary.LittleEndian
	return fmt.Sprintf("%d:%d:%o", le.Uint32(attr[68:]), le.Uint32(attr[72:]), le.Uint32(attr[60:])&0o7777)
}

// setattr sets an owner, a group and a mode, each if not negative.
func (g *guest) setattr(node uint64, uid, gid, mode int) syscall.Errno {
	g.t.Helper()
	valid := uint32(0)
	for i, v := range []int{mode, uid, gid} {
		if v >= 0 {
			valid |= 1 << i // FATTR_MODE, FATTR_UID, FATTR_GID
		}
	}
	body := make([]byte, 88)
	le := binary.LittleEndian
	le.PutUint32(body, valid)
	le.PutUint32(body[68:], uint32(mode))
	le.PutUint32(body[76:], uint32(uid))
	le.PutUint32(body[80:], uint32(gid))
	e, _ := g.ask(opSetattr, node, body)
	return e
}

// An ordinary user's files have the owners that the guest gives them, for the guest.
func TestOwnersOfAnOrdinaryUser(t *testing.T) {
	g, dir := newGuest(t, false)
	g.dev.fs.owners = &owners{uint32(os.Getuid())}
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(at("f"), nil, 0o640), os.Mkdir(at("d"), 0o755), os.Symlink("f", at("l")), unix.Mkfifo(at("p"), 0o600),
		os.WriteFile(at("other"), nil, 0o644))
	if os.Getuid() != 0 {
		t.Fatal("the file of another user needs root: run this with sudo")
	}
	must(t, os.Chown(at("other"), 7, 7))
	f, d := g.lookup(rootNode, "f"), g.lookup(rootNode, "d")
	check := func(what string, node uint64, want string) {
		t.Helper()
		if got := g.owner(node); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	onHost := func(what, name, want string) {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Lstat(at(name), &st))
		b := make([]byte, 100)
		n, err := unix.Lgetxattr(at(name), ownerXattr, b)
		if err != nil {
			n = 0
		}
		if got := fmt.Sprintf("%d %o %s", st.Uid, st.Mode&0o7777, b[:n]); got != want {
			t.Errorf("%s: on the host %q, want %q", what, got, want)
		}
	}
	ok := func(e syscall.Errno) {
		t.Helper()
		if e != 0 {
			t.Error(e)
		}
	}
	check("at first", f, "0:0:640")
	ok(g.setattr(f, 999, 998, -1))
	check("chown", f, "999:998:640")
	onHost("chown", "f", "0 640 999:998:0640")
	ok(g.setattr(f, -1, -1, 0o4755))
	check("chmod", f, "999:998:4755")
	onHost("chmod", "f", "0 755 999:998:04755")
	ok(g.setattr(f, 997, -1, -1))
	check("a new owner", f, "997:998:755")
	ok(g.setattr(f, -1, -1, 0))
	check("a mode that lets nobody in", f, "997:998:0")
	onHost("a mode that lets nobody in", "f", "0 600 997:998:00")
	if e, _ := g.open(f, unix.O_RDWR); e != 0 {
		t.Errorf("open: %v", e)
	}
	ok(g.setattr(f, 0, 0, 0o644))
	check("root again", f, "0:0:644")
	onHost("root again", "f", "0 644 ")
	ok(g.setattr(d, 999, 999, 0o2700))
	check("a directory", d, "999:999:2700")
	onHost("a directory", "d", "0 700 999:999:02700")

	// New files are their maker's, and the group of a directory that hands its own on.
	g.uid, g.gid = 999, 5
	if e, _ := g.ask(opMkdir, d, pack(uint32(0o755), uint32(0), "sub")); e != 0 {
		t.Fatal(e)
	}
	check("a new directory", g.lookup(d, "sub"), "999:999:2755")
	if e, _ := g.ask(opMknod, rootNode, pack(uint32(unix.S_IFREG|0o600), uint32(0), uint32(0), uint32(0), "new")); e != 0 {
		t.Fatal(e)
	}
	check("a new file", g.lookup(rootNode, "new"), "999:5:600")
	if e, _ := g.ask(opMknod, rootNode, pack(uint32(unix.S_IFIFO|0o600), uint32(0), uint32(0), uint32(0), "fifo")); e != 0 {
		t.Errorf("a new FIFO: %v", e)
	}

	// Links have no owners, special files root, others' nobody.
	ok(g.setattr(g.lookup(rootNode, "l"), 999, 999, -1))
	if e := g.setattr(g.lookup(rootNode, "p"), 999, 999, -1); e != unix.EPERM {
		t.Errorf("chown of a FIFO: %v", e)
	}
	ok(g.setattr(g.lookup(rootNode, "p"), -1, -1, 0o644))
	other := g.lookup(rootNode, "other")
	check("another user's", other, "65534:65534:644")
	must(t, unix.Setxattr(at("other"), ownerXattr, []byte("0:0:0777"), 0))
	check("another user's record", other, "65534:65534:644")
	if e := g.setattr(other, 0, 0, 0o777); e != unix.EPERM {
		t.Errorf("chown of another user's: %v", e)
	}

	// The record is not the guest's to see.
	ok(g.setattr(f, 12, 13, -1))
	e, list := g.ask(opListxattr, f, pack(uint32(1000), uint32(0)))
	if e != 0 || strings.Contains(string(list), "override") {
		t.Errorf("attributes %q, %v", list, e)
	}
	if e, _ := g.ask(opGetxattr, f, pack(uint32(1000), uint32(0), ownerXattr)); e != unix.ENODATA {
		t.Errorf("get: %v", e)
	}
	if e, _ := g.ask(opSetxattr, f, pack(uint32(5), uint32(0), ownerXattr, []byte("0:0:0"))); e != unix.EPERM {
		t.Errorf("set: %v", e)
	}
	// A record that nobody of ours wrote.
	for _, bad := range []string{"", "1", "1:2", "1:2:9", "1:2:17777", "-1:0:0", "4294967295:0:0", "4294967296:0:0", "1:2:3:4:5", strings.Repeat("1", 100)} {
		must(t, unix.Setxattr(at("f"), ownerXattr, []byte(bad), 0))
		check("record "+bad, f, "0:0:644")
	}
	must(t, unix.Setxattr(at("f"), ownerXattr, []byte("3:4:0755:file"), 0))
	check("a record with a type", f, "3:4:755")
}
