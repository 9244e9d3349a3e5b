package virtiofs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm/internal/virtiotest"
	"github.com/applevm/applevm/vmm/vhostuser"
)

// serve has the guest's device serve a front-end, until end or the test's end.
func serve(t *testing.T, g *guest) (front *virtiotest.Frontend, end func()) {
	front, conn := virtiotest.NewFrontend(t)
	s := vhostuser.NewServer(conn, g.dev, func(err error) { t.Error(err) })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Serve(); err != nil {
			t.Error(err)
		}
	}()
	end = func() {
		_ = s.Close()
		<-ended
	}
	t.Cleanup(end)
	front.Negotiate(^uint64(0))
	return front, end
}

// add makes a request and room for its answer available, in the descriptors d and d+1.
func add(q *virtiotest.Queue, d uint16, req []byte) {
	const (
		next  = 1
		write = 2
	)
	copy(q.Buffer(d), req)
	q.SetDesc(d, q.BufferAddr(d), uint32(len(req)), next, d+1)
	q.SetDesc(d+1, q.BufferAddr(d+1), virtiotest.BufferSize, write, 0)
	q.Add(d)
}

// lease makes opening the file wait until the end of the lease (fcntl(2), F_SETLEASE).
func lease(t *testing.T, path string) (end func()) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	must(t, err)
	return func() {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		must(t, err)
	}
}

// A request that has to wait holds up no other, nor the machine's end.
func TestSlowRequests(t *testing.T) {
	g, dir := newGuest(t, false)
	var ends []func()
	var nodes []uint64
	for _, name := range []string{"a", "b", "c"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		nodes = append(nodes, g.lookup(rootNode, name))
		ends = append(ends, lease(t, filepath.Join(dir, name)))
	}
	front, end := serve(t, g)
	q := front.StartQueue(queueRequests, 0)
	ask := func(d uint16, req []byte) {
		add(q, d, req)
		q.Notify()
	}
	answered := func(want uint16) {
		t.Helper()
		head, n := q.Used()
		if errno := binary.LittleEndian.Uint32(q.Buffer(head + 1)[4:]); head != want || n < outHeaderSize || errno != 0 {
			t.Fatalf("answer %d of %d bytes, error %d; want answer %d", head, n, -int32(errno), want)
		}
	}
	for i, n := range nodes[:2] {
		ask(uint16(2*i), g.request(opOpen, n, pack(uint32(unix.O_RDONLY), uint32(0))))
		for range 20 {
			ask(6, g.request(opLookup, rootNode, pack("a")))
			answered(6)
		}
	}
	ends[1]()
	answered(2)
	ends[0]()
	answered(0)
	ask(4, g.request(opOpen, nodes[2], pack(uint32(unix.O_RDONLY), uint32(0))))
	ask(6, g.request(opLookup, rootNode, pack("a")))
	answered(6)
	end()
	ends[2]()
	must(t, g.dev.Close())
	for range 1000 {
		g.dev.mu.Lock()
		left := g.dev.watching || g.dev.lanes[queueRequests].workers > 0
		g.dev.mu.Unlock()
		if !left {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("workers go on")
}

// TestDevice takes requests from both queues and answers each in its place, with
// pauses between and under them.
func TestDevice(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("text"), 0o644))
	front, _ := serve(t, g)
	base := uint16(0)
	for range 20 {
		high, q := front.StartQueue(queueHigh, 0), front.StartQueue(queueRequests, base)
		const each = 3
		want := map[uint16]uint64{}
		for d := uint16(0); d < 2*each; d += 2 {
			req := g.request(opLookup, rootNode, pack("f"))
			want[d] = g.unique
			add(q, d, req)
		}
		q.Notify()
		var node uint64
		for range each {
			head, n := q.Used()
			out := q.Buffer(head + 1)[:n]
			if int(n) != outHeaderSize+128 || binary.LittleEndian.Uint64(out[8:]) != want[head] || !bytes.Equal(out[4:8], make([]byte, 4)) {
				t.Fatalf("answer %d: % x", head, out)
			}
			node = binary.LittleEndian.Uint64(out[outHeaderSize:])
		}
		req := g.request(opForget, node, pack(uint64(each)))
		copy(high.Buffer(0), req)
		high.SetDesc(0, high.BufferAddr(0), uint32(len(req)), 0, 0)
		high.Add(0)
		high.Notify()
		if _, n := high.Used(); n != 0 {
			t.Errorf("FORGET has an answer of %d bytes", n)
		}
		high.Stop()
		base = q.Stop()
	}
	if base != 60 {
		t.Errorf("stopped at %d", base)
	}
	if g.dev.fs.open != 1 {
		t.Errorf("%d descriptors are open", g.dev.fs.open)
	}
}
