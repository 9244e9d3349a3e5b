package virtiofs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/applevm/applevm/vmm/internal/virtiotest"
	"github.com/applevm/applevm/vmm/vhostuser"
)

// TestDevice takes requests from both queues and answers each in its place, with
// pauses between and under them.
func TestDevice(t *testing.T) {
	g, dir := newGuest(t, false)
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("text"), 0o644))
	front, conn := virtiotest.NewFrontend(t)
	s := vhostuser.NewServer(conn, g.dev, func(err error) { t.Error(err) })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Serve(); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended
	})
	front.Negotiate(^uint64(0))
	const (
		next  = 1
		write = 2
	)
	base := uint16(0)
	for range 20 {
		high, q := front.StartQueue(queueHigh, 0), front.StartQueue(queueRequests, base)
		const each = 3
		want := map[uint16]uint64{}
		for d := uint16(0); d < 2*each; d += 2 {
			req := g.request(opLookup, rootNode, pack("f"))
			want[d] = g.unique
			copy(q.Buffer(d), req)
			q.SetDesc(d, q.BufferAddr(d), uint32(len(req)), next, d+1)
			q.SetDesc(d+1, q.BufferAddr(d+1), virtiotest.BufferSize, write, 0)
			q.Add(d)
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
