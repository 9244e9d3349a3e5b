package virtiofs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
)

// guest makes requests as a guest does, good ones and others.
type guest struct {
	t      testing.TB
	dev    *Device
	unique uint64
	uid    uint32
	gid    uint32
}

// newGuest shares a new directory, beside which there is a file that nobody shares.
func newGuest(t testing.TB, readOnly bool) (g *guest, dir string) {
	t.Helper()
	return newGuestIn(t, t.TempDir(), readOnly)
}

func newGuestIn(t testing.TB, top string, readOnly bool) (g *guest, dir string) {
	t.Helper()
	dir = filepath.Join(top, "share")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(top, "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	dev, err := New(vmm.Share{Path: dir, ReadOnly: readOnly}, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(outside); err != nil || string(b) != "secret" {
			t.Errorf("the file outside has %q, %v", b, err)
		}
		if dev.fs.open != 0 {
			t.Errorf("%d descriptors are open after the end", dev.fs.open)
		}
	})
	g = &guest{t: t, dev: dev, uid: uint32(os.Getuid()), gid: uint32(os.Getgid())}
	if e, _ := g.ask(opInit, 0, pack(uint32(7), uint32(31), uint32(1<<17), uint32(0xffffffff))); e != 0 {
		t.Fatalf("INIT: %v", e)
	}
	return g, dir
}

// pack concatenates numbers, little-endian, names, which get a NUL, and bytes.
func pack(parts ...any) []byte {
	var b []byte
	le := binary.LittleEndian
	for _, p := range parts {
		switch p := p.(type) {
		case uint16:
			b = le.AppendUint16(b, p)
		case uint32:
			b = le.AppendUint32(b, p)
		case uint64:
			b = le.AppendUint64(b, p)
		case string:
			b = append(append(b, p...), 0)
		case []byte:
			b = append(b, p...)
		default:
			panic(p)
		}
	}
	return b
}

// request is a well-formed request.
func (g *guest) request(opcode uint32, node uint64, body []byte) []byte {
	g.unique++
	return append(pack(uint32(inHeaderSize+len(body)), opcode, g.unique, node, g.uid, g.gid, uint32(1), uint32(0)), body...)
}

// ask makes a request and returns the answer without its header.
func (g *guest) ask(opcode uint32, node uint64, body []byte) (syscall.Errno, []byte) {
	g.t.Helper()
	return g.raw(g.request(opcode, node, body), maxAnswer)
}

func (g *guest) raw(req []byte, space int) (syscall.Errno, []byte) {
	g.t.Helper()
	out := g.dev.execute(req, make([]byte, space))
	if out == nil {
		return 0, nil
	}
	le := binary.LittleEndian
	if len(out) < outHeaderSize || len(out) > space || int(le.Uint32(out)) != len(out) || le.Uint64(out[8:]) != le.Uint64(req[8:]) {
		g.t.Fatalf("answer % x", out[:min(len(out), 64)])
	}
	return syscall.Errno(-int32(le.Uint32(out[4:]))), out[outHeaderSize:]
}

// Opcodes that tests name.
const (
	opLookup      = 1
	opGetattr     = 3
	opSetattr     = 4
	opReadlink    = 5
	opSymlink     = 6
	opMknod       = 8
	opMkdir       = 9
	opUnlink      = 10
	opRename      = 12
	opLink        = 13
	opOpen        = 14
	opWrite       = 16
	opRelease     = 18
	opSetxattr    = 21
	opRemovexattr = 24
	opOpendir     = 27
	opCreate      = 35
	opRename2     = 45
	opCopy        = 47
)

// nodeIn is the file number in the answer to a lookup or a creation, mode its type and
// permissions.
func nodeIn(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
func mode(b []byte) uint32   { return binary.LittleEndian.Uint32(b[40+60:]) }

func (g *guest) lookup(dir uint64, name string) uint64 {
	g.t.Helper()
	e, b := g.ask(opLookup, dir, pack(name))
	if e != 0 || nodeIn(b) == 0 {
		g.t.Fatalf("look up %q: %v", name, e)
	}
	return nodeIn(b)
}

func (g *guest) create(dir uint64, name string, flags, mode uint32) (syscall.Errno, uint64, uint64) {
	g.t.Helper()
	e, b := g.ask(opCreate, dir, pack(flags, mode, uint32(0), uint32(0), name))
	if e != 0 {
		return e, 0, 0
	}
	return e, nodeIn(b), binary.LittleEndian.Uint64(b[128:])
}

func (g *guest) open(node uint64, flags uint32) (syscall.Errno, uint64) {
	g.t.Helper()
	e, b := g.ask(opOpen, node, pack(flags, uint32(0)))
	if e != 0 {
		return e, 0
	}
	return e, binary.LittleEndian.Uint64(b)
}

func (g *guest) read(node, handle, offset uint64, size uint32) (syscall.Errno, []byte) {
	g.t.Helper()
	return g.ask(opRead, node, pack(handle, offset, size, uint32(0), uint64(0), uint64(0)))
}

func (g *guest) write(node, handle, offset uint64, data []byte) syscall.Errno {
	g.t.Helper()
	e, _ := g.ask(opWrite, node, append(pack(handle, offset, uint32(len(data)), uint32(0), uint64(0), uint64(0)), data...))
	return e
}

// setattr sets the size.
func (g *guest) truncate(node, size uint64) syscall.Errno {
	g.t.Helper()
	body := make([]byte, 88)
	binary.LittleEndian.PutUint32(body, 1<<3)
	binary.LittleEndian.PutUint64(body[16:], size)
	e, _ := g.ask(opSetattr, node, body)
	return e
}

func (g *guest) forget(node, lookups uint64) {
	g.t.Helper()
	if e, b := g.ask(opForget, node, pack(lookups)); e != 0 || b != nil {
		g.t.Errorf("FORGET has an answer")
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func repeat(c string, n int) string { return string(bytes.Repeat([]byte(c), n)) }

const everyFlag = unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC | unix.O_NONBLOCK
