package virtiofs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzRequests lets the guest send anything: each request is a length (16 bits)
// and so many bytes, whose own length is put right in every other run. Nothing may
// panic, wait or reach the file outside (newGuest looks after that).
func FuzzRequests(f *testing.F) {
	seed := func(reqs ...[]byte) {
		var b []byte
		for _, r := range reqs {
			b = append(binary.LittleEndian.AppendUint16(b, uint16(len(r))), r...)
		}
		f.Add(b, true)
		f.Add(b, false)
	}
	g := &guest{t: f}
	io := func(handle uint64, size uint32) []byte {
		return pack(handle, uint64(0), size, uint32(0), uint64(0), uint64(0))
	}
	// Numbers count up from 2: each lookup and each open takes one.
	seed(g.request(opLookup, 1, pack("f")), g.request(opOpen, 2, pack(uint32(unix.O_RDWR), uint32(0))), g.request(opRead, 2, io(3, 100)),
		g.request(opWrite, 2, append(io(3, 4), "data"...)), g.request(46, 2, pack(uint64(3), uint64(0), uint32(3), uint32(0))),
		g.request(43, 2, pack(uint64(3), uint64(0), uint64(100), uint64(0))), g.request(20, 2, pack(uint64(3), uint64(0))))
	seed(g.request(opLookup, 1, pack("..")), g.request(opLookup, 1, pack("up")), g.request(opReadlink, 2, nil), g.request(opLookup, 2, pack("outside")))
	seed(g.request(opMkdir, 1, pack(uint64(0o755), "d")), g.request(opCreate, 2, pack(uint32(everyFlag), uint32(0o644), uint64(0), "x")),
		g.request(opRename2, 2, pack(uint64(1), uint64(0), "x", "y")), g.request(opLookup, 1, pack("f")), g.request(opLookup, 1, pack("up")),
		g.request(opGetattr, 3, make([]byte, 16)), g.request(opLink, 2, pack(uint64(3), "z")))
	seed(g.request(opOpendir, 1, pack(uint64(0))), g.request(opReaddirplus, 1, io(2, 4096)), g.request(opReaddir, 1, io(2, 50)),
		g.request(opSymlink, 1, pack("link", "../outside")), g.request(opUnlink, 1, pack("f")))
	seed(g.request(opSetxattr, 1, pack(uint32(1), uint32(0), "user.x", []byte("1"))), g.request(opListxattr, 1, pack(uint32(100), uint32(0))),
		g.request(opGetxattr, 1, pack(uint32(100), uint32(0), "user.x")), g.request(opSetattr, 1, make([]byte, 88)))
	seed(g.request(opBatchForget, 0, pack(uint32(9), uint32(0), uint64(2), uint64(1))), g.request(opForget, 1, pack(uint64(1))),
		g.request(36, 0, pack(uint64(1))), g.request(opDestroy, 0, nil), g.request(opInit, 0, pack(uint32(7), uint32(31), uint64(0))))

	top := f.TempDir()
	if os.Getuid() == 0 { // what a guest allocates must not fill the disk
		must(f, unix.Mount("tmpfs", top, "tmpfs", 0, "size=8m,nr_inodes=1000"))
		f.Cleanup(func() { _ = unix.Unmount(top, unix.MNT_DETACH) })
	}
	f.Fuzz(func(t *testing.T, data []byte, repair bool) {
		// Removed when all else of the test has ended.
		t.Cleanup(func() { must(t, os.RemoveAll(filepath.Join(top, "share"))) })
		g, dir := newGuestIn(t, top, false)
		g.dev.fs.maxAwake = 2 // so that files sleep
		must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("text"), 0o644), os.Symlink("..", filepath.Join(dir, "up")))
		for n := 0; len(data) >= 2 && n < 50; n++ {
			size := int(binary.LittleEndian.Uint16(data))
			data = data[2:]
			req := append([]byte(nil), data[:min(size, len(data))]...)
			data = data[len(req):]
			if repair && len(req) >= inHeaderSize {
				binary.LittleEndian.PutUint32(req, uint32(len(req)))
				req[36], req[37] = 0, 0
			}
			space := maxAnswer
			if n%4 == 3 {
				space = size % 512
			}
			_, _ = g.raw(req, space) // which checks the answer's form
		}
	})
}
