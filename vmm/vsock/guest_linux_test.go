package vsock

import (
	"bytes"
	"testing"
	"time"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/internal/virtiotest"
	"github.com/applevm/applevm/vmm/vhostuser"
)

// guest is a driver that sends whatever packets a test wants.
type guest struct {
	t      *testing.T
	dev    *Device
	rx, tx *virtiotest.Queue
	next   uint16
}

// newGuest puts a device before a guest that has offered buffers for so many
// packets of at most BufferSize.
func newGuest(t *testing.T, buffers int) *guest {
	t.Helper()
	f, conn := virtiotest.NewFrontend(t)
	dev := New()
	s := vhostuser.NewServer(conn, dev, func(err error) { t.Errorf("fault: %v", err) })
	ended := make(chan struct{})
	go func() {
		if err := s.Serve(); err != nil {
			t.Errorf("Serve: %v", err)
		}
		close(ended)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended
		_ = dev.Close()
	})
	f.Negotiate(^uint64(0))
	g := &guest{t: t, dev: dev, rx: f.StartQueue(queueRX, 0), tx: f.StartQueue(queueTX, 0)}
	for i := range buffers {
		g.offer(uint16(i), virtiotest.BufferSize)
	}
	return g
}

// offer makes buffer d available for a packet.
func (g *guest) offer(d uint16, size uint32) {
	g.rx.SetDesc(d, g.rx.BufferAddr(d), size, 2, 0)
	g.rx.Add(d)
	g.rx.Notify()
}

// send sends a packet with what h lacks: CIDs, type and length.
func (g *guest) send(h header, payload string) {
	g.t.Helper()
	if h.SrcCID == 0 {
		h.SrcCID = GuestCID
	}
	if h.DstCID == 0 {
		h.DstCID = vmm.HostCID
	}
	if h.Type == 0 {
		h.Type = typeStream
	}
	if h.Len == 0 {
		h.Len = uint32(len(payload))
	}
	var b [headerSize]byte
	h.encode(&b)
	g.sendRaw(append(b[:], payload...))
}

func (g *guest) sendRaw(b []byte) {
	g.t.Helper()
	d := g.next
	g.next = (g.next + 1) % virtiotest.QueueSize
	n := copy(g.tx.Buffer(d), b)
	g.tx.SetDesc(d, g.tx.BufferAddr(d), uint32(n), 0, 0)
	g.tx.Add(d)
	g.tx.Notify()
	g.tx.Used()
}

// receive waits for a packet, and offers its buffer again.
func (g *guest) receive() (header, string) {
	g.t.Helper()
	h, payload, d := g.take()
	g.offer(d, virtiotest.BufferSize)
	return h, payload
}

// take is receive without a new buffer.
func (g *guest) take() (header, string, uint16) {
	g.t.Helper()
	d, n := g.rx.Used()
	b := bytes.Clone(g.rx.Buffer(d)[:n])
	if len(b) < headerSize {
		g.t.Fatalf("packet of %d bytes", len(b))
	}
	h := parseHeader((*[headerSize]byte)(b))
	if h.SrcCID != vmm.HostCID || h.DstCID != GuestCID || int(h.Len) != len(b)-headerSize {
		g.t.Fatalf("packet %+v of %d bytes", h, n)
	}
	return h, string(b[headerSize:]), d
}

func (g *guest) expect(op uint16) header {
	g.t.Helper()
	h, _ := g.receive()
	if h.Op != op {
		g.t.Fatalf("packet %+v, want operation %d", h, op)
	}
	return h
}

// silent fails the test if a packet comes.
func (g *guest) silent() {
	g.t.Helper()
	if d, _, err := g.rx.UsedWithin(30 * time.Millisecond); err == nil {
		b := g.rx.Buffer(d)
		g.t.Fatalf("unexpected packet %+v", parseHeader((*[headerSize]byte)(b)))
	}
}

// streams is how many streams the device has.
func (g *guest) streams() int {
	g.dev.mu.Lock()
	defer g.dev.mu.Unlock()
	return len(g.dev.streams)
}

const (
	hostPort  = 1024
	guestPort = 77
)

// from is the header of a packet of the stream that dialHost makes.
func from(op uint16, alloc, fwd uint32) header {
	return header{SrcPort: guestPort, DstPort: hostPort, Op: op, BufAlloc: alloc, FwdCnt: fwd}
}

// dialHost has the guest connect, with so much buffer of its own.
func (g *guest) dialHost(alloc uint32) *Conn {
	g.t.Helper()
	l, err := g.dev.Listen(hostPort)
	if err != nil {
		g.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	g.send(from(opRequest, alloc, 0), "")
	c, err := l.Accept()
	if err != nil {
		g.t.Fatal(err)
	}
	if h := g.expect(opResponse); h.SrcPort != hostPort || h.DstPort != guestPort || h.BufAlloc != window {
		g.t.Errorf("response %+v", h)
	}
	_ = c.SetDeadline(time.Now().Add(virtiotest.Timeout))
	g.t.Cleanup(func() { _ = c.Close() })
	return c.(*Conn)
}
