package vsock

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/internal/virtiotest"
	"github.com/applevm/applevm/vmm/vhostuser"
)

func TestDial(t *testing.T) {
	tests := []struct {
		name   string
		answer header
		err    error
	}{
		{"accepted", header{Op: opResponse, BufAlloc: 1000}, nil},
		{"refused", header{Op: opRST}, vmm.ErrRefused},
		{"answered with nonsense", header{Op: opRW}, syscall.ECONNRESET},
		{"answered with credit out of nothing", header{Op: opResponse, FwdCnt: 1}, syscall.ECONNRESET},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest(t, 8)
			result := make(chan error, 1)
			go func() {
				_, err := g.dev.Dial(t.Context(), guestPort)
				result <- err
			}()
			h := g.expect(opRequest)
			if h.DstPort != guestPort || h.SrcPort < firstPort || h.Type != typeStream {
				t.Errorf("request %+v", h)
			}
			tt.answer.SrcPort, tt.answer.DstPort = guestPort, h.SrcPort
			g.send(tt.answer, "")
			if err := <-result; !errors.Is(err, tt.err) {
				t.Errorf("Dial: %v", err)
			}
			if tt.err != nil && g.streams() != 0 {
				t.Error("a failed dial leaves a stream")
			}
		})
	}
}

func TestDialGivenUp(t *testing.T) {
	g := newGuest(t, 8)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.dev.Dial(ctx, guestPort); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial: %v", err)
	}
	h := g.expect(opRequest)
	g.expect(opRST)
	// The guest was slow: its answer finds nobody.
	g.send(header{SrcPort: guestPort, DstPort: h.SrcPort, Op: opResponse}, "")
	g.expect(opRST)
}

func TestDialBeforeGuestIsThere(t *testing.T) {
	g := newGuest(t, 0)
	result := make(chan error, 1)
	go func() {
		_, err := g.dev.Dial(t.Context(), guestPort)
		result <- err
	}()
	time.Sleep(20 * time.Millisecond)
	g.offer(0, virtiotest.BufferSize)
	g.offer(1, virtiotest.BufferSize)
	h := g.expect(opRequest)
	g.send(header{SrcPort: guestPort, DstPort: h.SrcPort, Op: opResponse}, "")
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestCreditTowardsGuest(t *testing.T) {
	g := newGuest(t, 8)
	c := g.dialHost(10)
	written := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte("0123456789abcdefghij!"))
		written <- err
	}()
	if _, p := g.receive(); p != "0123456789" {
		t.Errorf("with a credit of 10 came %q", p)
	}
	g.silent()
	g.send(from(opCreditUpdate, 10, 4), "")
	if _, p := g.receive(); p != "abcd" {
		t.Errorf("with a credit of 4 came %q", p)
	}
	// A packet that was overtaken says less than is known already.
	g.send(from(opCreditUpdate, 10, 2), "")
	g.silent()
	// The buffer may shrink, even below what is under way.
	g.send(from(opCreditUpdate, 2, 4), "")
	g.silent()
	g.send(from(opCreditUpdate, 100, 14), "")
	if _, p := g.receive(); p != "efghij!" {
		t.Errorf("the rest is %q", p)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

func TestWriteWaitsForBuffers(t *testing.T) {
	g := newGuest(t, 1)
	c := g.dialHost(1 << 20)
	// Eight writers would be woken by one kick.
	const writers = 8
	done := make(chan error, writers)
	for range writers {
		go func() {
			_, err := c.Write([]byte("x"))
			done <- err
		}()
	}
	for range writers {
		time.Sleep(5 * time.Millisecond)
		if h, p := g.receive(); h.Op != opRW || p != "x" {
			t.Errorf("packet %+v %q", h, p)
		}
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestBuffersTooSmall(t *testing.T) {
	g := newGuest(t, 2)
	c := g.dialHost(1 << 20)
	// Those of the first packets are in the queue already; then come useless ones.
	go func() { _, _ = c.Write([]byte(strings.Repeat("y", 100))) }()
	_, first, d := g.take()
	if first != strings.Repeat("y", 100) {
		t.Errorf("got %q", first)
	}
	g.offer(d, headerSize-1)
	g.offer(d+2, headerSize)
	g.offer(d+3, headerSize+1)
	go func() { _, _ = c.Write([]byte("zz")) }()
	var got string
	for got != "zz" {
		d, n := g.rx.Used()
		if n > headerSize {
			got += string(g.rx.Buffer(d)[headerSize:n])
		}
		g.offer(d, virtiotest.BufferSize)
	}
}

func TestGuestKeepsToItsCredit(t *testing.T) {
	g := newGuest(t, 16)
	c := g.dialHost(1 << 20)
	block := strings.Repeat("b", 8000)
	sent := 0
	for ; sent+len(block) <= window; sent += len(block) {
		g.send(from(opRW, 1<<20, 0), block)
	}
	g.silent()
	// Reading all of it gives few updates, and all credit in the end.
	if _, err := io.ReadFull(c, make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	updates, told := 0, uint32(0)
	for told < uint32(sent)-window/4 {
		told = g.expect(opCreditUpdate).FwdCnt
		updates++
	}
	if updates > 4 {
		t.Errorf("%d credit updates for %d bytes", updates, sent)
	}
	g.send(from(opCreditRequest, 1<<20, 0), "")
	if h := g.expect(opCreditUpdate); h.FwdCnt != uint32(sent) || h.BufAlloc != window {
		t.Errorf("credit %+v after %d bytes", h, sent)
	}
}

// TestBrokenStream has the guest break one stream in each way. The stream is
// reset, what came before is still read, and another stream lives on.
func TestBrokenStream(t *testing.T) {
	tests := []struct {
		name   string
		packet header
		data   string
	}{
		{"data beyond credit", header{Op: opRW, Len: window + 1}, strings.Repeat("a", 8000)},
		{"data beyond the packet", header{Op: opRW, Len: 100}, "a"},
		{"second request", header{Op: opRequest}, ""},
		{"second response", header{Op: opResponse}, ""},
		{"unknown operation", header{Op: 99}, ""},
		{"operation 0", header{Op: 0}, ""},
		{"more consumed than sent", header{Op: opCreditUpdate, FwdCnt: 1}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest(t, 8)
			c := g.dialHost(1000)
			g.send(from(opRW, 1000, 0), "before")
			tt.packet.SrcPort, tt.packet.DstPort = guestPort, hostPort
			g.send(tt.packet, tt.data)
			if h := g.expect(opRST); h.DstPort != guestPort {
				t.Errorf("reset %+v", h)
			}
			if b, err := io.ReadAll(c); string(b) != "before" || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read %q, %v", b, err)
			}
			if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Write: %v", err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			g.silent()
			other := g.dialHost(1000)
			g.send(from(opRW, 1000, 0), "fine")
			if _, err := io.ReadFull(other, make([]byte, 4)); err != nil {
				t.Errorf("another stream: %v", err)
			}
		})
	}
}

func TestStrayPackets(t *testing.T) {
	tests := []struct {
		name   string
		packet header
		answer bool
	}{
		{"of no stream", header{Op: opRW}, true},
		{"shutdown of no stream", header{Op: opShutdown, Flags: shutBoth}, true},
		{"request to a port without a listener", header{Op: opRequest}, true},
		{"request with credit out of nothing", header{Op: opRequest, DstPort: 5, FwdCnt: 1}, true},
		{"reset of no stream", header{Op: opRST}, false},
		{"unknown type", header{Op: opRequest, DstPort: 5, Type: 2}, true},
		{"reset of unknown type", header{Op: opRST, Type: 2}, false},
		{"from another guest", header{Op: opRequest, DstPort: 5, SrcCID: 4}, false},
		{"from the host", header{Op: opRequest, DstPort: 5, SrcCID: vmm.HostCID}, false},
		{"to another guest", header{Op: opRequest, DstPort: 5, DstCID: 4}, false},
		{"to a huge CID", header{Op: opRequest, DstPort: 5, DstCID: 1<<32 | vmm.HostCID}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest(t, 8)
			l, err := g.dev.Listen(5)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			tt.packet.SrcPort = guestPort
			g.send(tt.packet, "")
			if !tt.answer {
				g.silent()
				return
			}
			h := g.expect(opRST)
			if h.SrcPort != tt.packet.DstPort || h.DstPort != guestPort || tt.packet.Type != 0 && h.Type != tt.packet.Type {
				t.Errorf("reset %+v", h)
			}
		})
	}
	t.Run("too short", func(t *testing.T) {
		g := newGuest(t, 8)
		for _, n := range []int{1, 43} {
			g.sendRaw(make([]byte, n))
		}
		g.silent()
	})
}

func TestResetByGuest(t *testing.T) {
	g := newGuest(t, 8)
	c := g.dialHost(0)
	blocked := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte("no credit"))
		blocked <- err
	}()
	g.send(from(opRW, 0, 0), "last")
	g.send(from(opRST, 0, 0), "")
	if err := <-blocked; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Write: %v", err)
	}
	if b, err := io.ReadAll(c); string(b) != "last" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %q, %v", b, err)
	}
	g.silent()
}

func TestShutdownByGuest(t *testing.T) {
	t.Run("of sending", func(t *testing.T) {
		g := newGuest(t, 8)
		c := g.dialHost(1000)
		g.send(from(opRW, 1000, 0), "end")
		h := from(opShutdown, 1000, 0)
		h.Flags = shutSend
		g.send(h, "")
		if b, err := io.ReadAll(c); string(b) != "end" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		if _, err := c.Write([]byte("still open")); err != nil {
			t.Error(err)
		}
		g.expect(opRW)
		g.send(from(opRW, 1000, 0), "more")
		g.expect(opRST) // data after its end
	})
	t.Run("of receiving", func(t *testing.T) {
		g := newGuest(t, 8)
		c := g.dialHost(1000)
		h := from(opShutdown, 1000, 0)
		h.Flags = shutReceive
		g.send(h, "")
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write: %v", err)
		}
		g.send(from(opRW, 1000, 0), "goes on")
		if _, err := io.ReadFull(c, make([]byte, 7)); err != nil {
			t.Error(err)
		}
	})
	t.Run("of both", func(t *testing.T) {
		g := newGuest(t, 8)
		c := g.dialHost(1000)
		g.send(from(opRW, 1000, 0), "end")
		h := from(opShutdown, 1000, 0)
		h.Flags = shutBoth
		g.send(h, "")
		g.expect(opRST) // Linux waits for it
		if b, err := io.ReadAll(c); string(b) != "end" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write: %v", err)
		}
	})
}

func TestCloseTellsGuest(t *testing.T) {
	g := newGuest(t, 8)
	c := g.dialHost(1000)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	g.expect(opRW)
	for flags := uint32(0); flags != shutBoth; {
		flags |= g.expect(opShutdown).Flags
	}
	g.send(from(opRW, 1000, 1), "too late")
	g.silent() // that is no fault
	g.send(from(opRST, 1000, 1), "")
	g.send(from(opRW, 1000, 1), "after the end")
	g.expect(opRST)
	for _, err := range []error{
		second(c.Read(make([]byte, 1))), second(c.Write([]byte("x"))), c.CloseWrite(),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("on a closed connection: %v", err)
		}
	}
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func second(_ int, err error) error { return err }

func TestBacklogIsBounded(t *testing.T) {
	g := newGuest(t, 32)
	l, err := g.dev.Listen(hostPort)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(backlog) {
		g.send(header{SrcPort: i, DstPort: hostPort, Op: opRequest}, "")
		g.expect(opResponse)
	}
	g.send(header{SrcPort: 9999, DstPort: hostPort, Op: opRequest}, "")
	g.expect(opRST)
	// Those that nobody accepted are reset with the listener.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for range backlog {
		g.expect(opRST)
	}
	if n := g.streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	g := newGuest(t, 32)
	l, err := g.dev.Listen(hostPort)
	if err != nil {
		t.Fatal(err)
	}
	small := 0
	for i := range uint32(maxStreams) {
		g.send(header{SrcPort: i, DstPort: hostPort, Op: opRequest}, "")
		if g.expect(opResponse).BufAlloc == smallWindow {
			small++
		}
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	if small != maxStreams-fullWindows {
		t.Errorf("%d streams have a small window", small)
	}
	g.send(header{SrcPort: 9999, DstPort: hostPort, Op: opRequest}, "")
	g.expect(opRST)
	if _, err := g.dev.Dial(t.Context(), 1); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Dial: %v", err)
	}
}

// TestFloodWithoutReceiving has a guest that provokes answers and takes none.
func TestFloodWithoutReceiving(t *testing.T) {
	g := newGuest(t, 0)
	for range 2 * maxResets {
		g.send(header{SrcPort: 1, DstPort: 2, Op: opRW}, "")
	}
	g.dev.out.mu.Lock()
	defer g.dev.out.mu.Unlock()
	if n := len(g.dev.out.resets); n > maxResets {
		t.Errorf("%d answers wait", n)
	}
}

func TestDeviceEnd(t *testing.T) {
	g := newGuest(t, 8)
	l, err := g.dev.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	c := g.dialHost(0)
	dialed := make(chan error, 1)
	go func() {
		_, err := g.dev.Dial(context.Background(), guestPort)
		dialed <- err
	}()
	g.expect(opRequest)
	if err := g.dev.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-dialed; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Dial: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := g.dev.Listen(2); err == nil {
		t.Error("Listen succeeded")
	}
}

func TestDeadlines(t *testing.T) {
	g := newGuest(t, 8)
	c := g.dialHost(0)
	// Moved while somebody waits.
	result := make(chan error, 2)
	go func() { result <- second(c.Read(make([]byte, 1))) }()
	go func() { result <- second(c.Write([]byte("x"))) }()
	time.Sleep(10 * time.Millisecond)
	_ = c.SetDeadline(time.Now())
	for range 2 {
		if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("past the deadline: %v", err)
		}
	}
	_ = c.SetDeadline(time.Time{})
	g.send(from(opRW, 0, 0), "x")
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("without a deadline: %v", err)
	}
}

// FuzzPacket feeds packets of a stream and of none to a device.
func FuzzPacket(f *testing.F) {
	for op := range uint16(9) {
		var b [headerSize]byte
		h := header{SrcCID: GuestCID, DstCID: vmm.HostCID, SrcPort: guestPort, DstPort: hostPort, Type: typeStream, Op: op, Len: 3}
		h.encode(&b)
		f.Add(append(b[:], "abc"...), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, open bool) {
		d := New()
		l, err := d.Listen(hostPort)
		if err != nil {
			t.Fatal(err)
		}
		if open {
			d.accept(flow{hostPort, guestPort}, &header{})
		}
		for range 3 {
			d.receive(vhostuser.Segments{b[:len(b)/3], b[len(b)/3:]})
		}
		if len(d.streams) > 2 {
			t.Errorf("%d streams", len(d.streams))
		}
		_ = l.Close()
		_ = d.Close()
	})
}
