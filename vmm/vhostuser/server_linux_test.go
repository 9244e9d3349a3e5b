package vhostuser

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm/internal/virtiotest"
)

// upper is a device with two queues that writes back in upper case what it reads.
type upper struct{ queues []*Queue }

func newUpper() *upper { return &upper{[]*Queue{{}, {}}} }

func (d *upper) Features() uint64 { return 0 }
func (d *upper) Queues() []*Queue { return d.queues }
func (d *upper) Config() []byte   { return []byte{1, 2, 3} }

func (d *upper) HandleQueue(i int) error {
	q := d.queues[i]
	if !q.Lock() {
		return nil
	}
	defer q.Unlock()
	for {
		c, err := q.Next()
		if err != nil || c == nil {
			return err
		}
		in := make([]byte, min(c.Readable.Len(), 1<<16))
		c.Readable.CopyOut(in, 0)
		q.Done(c, uint32(c.Writable.CopyIn(bytes.ToUpper(in), 0)))
	}
}

// serve starts a server for an upper and returns its front-end, the reported
// faults, and what Serve returns.
func serve(t *testing.T) (f *virtiotest.Frontend, faults chan error, result chan error) {
	t.Helper()
	f, conn := virtiotest.NewFrontend(t)
	faults, result = make(chan error, 100), make(chan error, 1)
	s := NewServer(conn, newUpper(), func(err error) { faults <- err })
	ended := make(chan struct{})
	go func() {
		result <- s.Serve()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended
	})
	return f, faults, result
}

const all = ^uint64(0)

// request puts text into descriptor d and makes d+1 its answer's place.
func request(q *virtiotest.Queue, d uint16, text string) {
	copy(q.Buffer(d), text)
	q.SetDesc(d, q.BufferAddr(d), uint32(len(text)), descNext, d+1)
	q.SetDesc(d+1, q.BufferAddr(d+1), virtiotest.BufferSize, descWrite, 0)
	q.Add(d)
}

func expect(t *testing.T, q *virtiotest.Queue, d uint16, text string) {
	t.Helper()
	head, n := q.Used()
	if head != d || string(q.Buffer(d + 1)[:n]) != text {
		t.Errorf("used descriptor %d with %q, want %d with %q", head, q.Buffer(d + 1)[:n], d, text)
	}
}

func TestQueue(t *testing.T) {
	tests := []struct {
		name string
		mask uint64
	}{
		{"with EVENT_IDX", all},
		{"without EVENT_IDX", all &^ FeatureEventIdx},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, _, _ := serve(t)
			f.Negotiate(tt.mask)
			// Near the end of its range, so that the index wraps around.
			q := f.StartQueue(1, 65500)
			for range 200 {
				request(q, 4, "hello")
				request(q, 8, "world")
				q.Notify()
				q.WaitCall()
				expect(t, q, 4, "HELLO")
				expect(t, q, 8, "WORLD")
			}
		})
	}
}

func TestIndirectChain(t *testing.T) {
	f, _, _ := serve(t)
	f.Negotiate(all)
	q := f.StartQueue(0, 0)
	table := q.Buffer(10)
	virtiotest.PutDesc(table[0:], q.BufferAddr(1), 2, descNext, 2)
	virtiotest.PutDesc(table[32:], q.BufferAddr(2), 3, descNext, 1)
	virtiotest.PutDesc(table[16:], q.BufferAddr(3), 100, descWrite, 0)
	copy(q.Buffer(1), "abXX")
	copy(q.Buffer(2), "cdeXX")
	q.SetDesc(5, q.BufferAddr(10), 48, descIndirect, 0)
	q.Add(5)
	q.Notify()
	if head, n := q.Used(); head != 5 || string(q.Buffer(3)[:n]) != "ABCDE" {
		t.Errorf("used %d: %q", head, q.Buffer(3)[:n])
	}
}

func TestStopAndRestart(t *testing.T) {
	f, _, _ := serve(t)
	f.Negotiate(all)
	q := f.StartQueue(0, 0)
	request(q, 0, "a")
	q.Notify()
	expect(t, q, 0, "A")
	if base := q.Stop(); base != 1 {
		t.Errorf("stopped at %d", base)
	}
	// QEMU shares the flags of its event files with us, and hangs if one blocks.
	if flags, err := unix.FcntlInt(q.Kick.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("the kick file has become blocking: %#x, %v", flags, err)
	}
	request(q, 2, "b")
	q.Notify()
	if _, _, err := q.UsedWithin(50 * time.Millisecond); err == nil {
		t.Error("a stopped queue works on")
	}
	q = f.StartQueue(0, 1)
	request(q, 4, "c")
	q.Notify()
	expect(t, q, 4, "C")
}

func TestDisabledQueueWaits(t *testing.T) {
	f, _, _ := serve(t)
	f.Negotiate(all)
	q := f.StartQueue(0, 0)
	f.Do(18, virtiotest.State(0, 0))
	request(q, 0, "a")
	q.Notify()
	if _, _, err := q.UsedWithin(50 * time.Millisecond); err == nil {
		t.Error("a disabled queue works")
	}
	f.Do(18, virtiotest.State(0, 1))
	expect(t, q, 0, "A") // what was there is found without a kick
}

func TestMemoryIsReplacedUnderRunningQueue(t *testing.T) {
	f, _, _ := serve(t)
	f.Negotiate(all)
	q := f.StartQueue(0, 0)
	for range 50 {
		request(q, 0, "again")
		q.Notify()
		f.SetMemory()
		expect(t, q, 0, "AGAIN")
	}
}

func TestConfig(t *testing.T) {
	f, _, _ := serve(t)
	ask := func(offset, size uint32) []byte {
		p := binary.LittleEndian.AppendUint32(virtiotest.State(offset, size), 0)
		return f.Ask(24, append(p, make([]byte, size)...))[12:]
	}
	if got := ask(0, 8); !bytes.Equal(got, []byte{1, 2, 3, 0, 0, 0, 0, 0}) {
		t.Errorf("configuration %v", got)
	}
	if got := ask(2, 2); !bytes.Equal(got, []byte{3, 0}) {
		t.Errorf("its end %v", got)
	}
}

func TestRefusedRequests(t *testing.T) {
	f, _, _ := serve(t)
	f.Negotiate(all)
	mem := f.MemoryFD()
	tests := []struct {
		name    string
		request uint32
		payload []byte
		fds     []int
	}{
		{"unknown request", 99, nil, nil},
		{"short number", 2, []byte{1}, nil},
		{"feature that was not offered", 2, virtiotest.U64(1 << 60), nil},
		{"ring that is not there", 8, virtiotest.State(2, 64), nil},
		{"huge ring index", 12, virtiotest.U64(255), []int{mem}},
		{"empty ring", 8, virtiotest.State(0, 0), nil},
		{"huge ring", 8, virtiotest.State(0, 1<<16), nil},
		{"kick without a file", 12, virtiotest.U64(0), nil},
		{"kick in polling mode", 12, virtiotest.U64(0x100), nil},
		{"kick file that cannot be polled", 12, virtiotest.U64(0), []int{mem}},
		{"call with two files", 13, virtiotest.U64(0), []int{mem, mem}},
		{"memory table without files", 5, virtiotest.MemTable(0, 4096, 0, 0), nil},
		{"memory past the file's end", 5, virtiotest.MemTable(0, virtiotest.MemorySize+1, 0, 0), []int{mem}},
		{"memory offset past the file's end", 5, virtiotest.MemTable(0, 4096, 0, 1<<40), []int{mem}},
		{"memory that wraps around", 5, virtiotest.MemTable(^uint64(0), 4096, 0, 0), []int{mem}},
		{"memory offset that wraps around", 5, virtiotest.MemTable(0, 4096, 0, ^uint64(0)), []int{mem}},
		{"memory of no size", 5, virtiotest.MemTable(0, 0, 0, 0), []int{mem}},
		{"short memory table", 5, []byte{1}, []int{mem}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if f.Try(tt.request, tt.payload, tt.fds...) == 0 {
				t.Error("accepted")
			}
		})
	}
	q := f.StartQueue(0, 0)
	request(q, 0, "works still")
	q.Notify()
	expect(t, q, 0, "WORKS STILL")
}

func TestRingOutsideMemory(t *testing.T) {
	for _, at := range []int{8, 16, 24} {
		f, _, _ := serve(t)
		f.Negotiate(all)
		q := f.StartQueue(0, 0)
		q.Stop()
		addr := q.Addr()
		binary.LittleEndian.PutUint64(addr[at:], virtiotest.UserBase+virtiotest.MemorySize-64)
		f.Do(9, addr)
		if f.Try(12, virtiotest.U64(0), int(q.Kick.Fd())) == 0 {
			t.Error("a ring that ends outside the memory was started")
		}
	}
}

// TestHostileGuest has the guest break the ring: the fault is reported, the
// ring is dead, and all else goes on.
func TestHostileGuest(t *testing.T) {
	const outside = virtiotest.GuestBase + virtiotest.MemorySize
	tests := []struct {
		name   string
		break_ func(q *virtiotest.Queue)
	}{
		{"head out of range", func(q *virtiotest.Queue) { q.Add(virtiotest.QueueSize) }},
		{"next out of range", func(q *virtiotest.Queue) {
			q.SetDesc(0, q.BufferAddr(0), 1, descNext, 60000)
			q.Add(0)
		}},
		{"loop", func(q *virtiotest.Queue) {
			q.SetDesc(0, q.BufferAddr(0), 1, descNext, 1)
			q.SetDesc(1, q.BufferAddr(1), 1, descNext, 0)
			q.Add(0)
		}},
		{"loop of empty descriptors", func(q *virtiotest.Queue) {
			q.SetDesc(0, 0, 0, descNext, 0)
			q.Add(0)
		}},
		{"address outside", func(q *virtiotest.Queue) {
			q.SetDesc(0, outside, 1, 0, 0)
			q.Add(0)
		}},
		{"end outside", func(q *virtiotest.Queue) {
			q.SetDesc(0, outside-10, 11, 0, 0)
			q.Add(0)
		}},
		{"address that wraps around", func(q *virtiotest.Queue) {
			q.SetDesc(0, ^uint64(0)-3, 4096, descWrite, 0)
			q.Add(0)
		}},
		{"readable after writable", func(q *virtiotest.Queue) {
			q.SetDesc(0, q.BufferAddr(0), 1, descWrite|descNext, 1)
			q.SetDesc(1, q.BufferAddr(1), 1, 0, 0)
			q.Add(0)
		}},
		{"more buffers than the ring has", func(q *virtiotest.Queue) { q.PublishAvail(virtiotest.QueueSize + 1) }},
		{"indirect and next", func(q *virtiotest.Queue) {
			q.SetDesc(0, q.BufferAddr(0), 16, descIndirect|descNext, 1)
			q.Add(0)
		}},
		{"indirect table of odd length", func(q *virtiotest.Queue) {
			q.SetDesc(0, q.BufferAddr(0), 17, descIndirect, 0)
			q.Add(0)
		}},
		{"indirect table outside", func(q *virtiotest.Queue) {
			q.SetDesc(0, outside-8, 16, descIndirect, 0)
			q.Add(0)
		}},
		{"huge indirect table", func(q *virtiotest.Queue) {
			q.SetDesc(0, virtiotest.GuestBase, 1<<20, descIndirect, 0)
			q.Add(0)
		}},
		{"indirect in indirect", func(q *virtiotest.Queue) {
			virtiotest.PutDesc(q.Buffer(1), q.BufferAddr(1), 16, descIndirect, 0)
			q.SetDesc(0, q.BufferAddr(1), 16, descIndirect, 0)
			q.Add(0)
		}},
		{"loop in indirect", func(q *virtiotest.Queue) {
			virtiotest.PutDesc(q.Buffer(1), q.BufferAddr(1), 1, descNext, 0)
			q.SetDesc(0, q.BufferAddr(1), 16, descIndirect, 0)
			q.Add(0)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, faults, _ := serve(t)
			f.Negotiate(all)
			bad, good := f.StartQueue(0, 0), f.StartQueue(1, 0)
			tt.break_(bad)
			bad.Notify()
			select {
			case err := <-faults:
				if !errors.Is(err, ErrRing) {
					t.Errorf("reported: %v", err)
				}
			case <-time.After(virtiotest.Timeout):
				t.Fatal("no fault was reported")
			}
			request(good, 0, "other queue")
			good.Notify()
			expect(t, good, 0, "OTHER QUEUE")
			// A guest that resets its device has a working queue again.
			bad.Stop()
			bad = f.StartQueue(0, 0)
			request(bad, 0, "after reset")
			bad.Notify()
			expect(t, bad, 0, "AFTER RESET")
		})
	}
}

func TestEndReleasesAll(t *testing.T) {
	openFDs := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	f, _, result := serve(t)
	before := openFDs()
	f.Negotiate(all)
	q := f.StartQueue(0, 0)
	request(q, 0, "a")
	q.Notify()
	expect(t, q, 0, "A")
	if err := f.Conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if after := openFDs(); after > before {
		t.Errorf("%d open files, %d before", after, before)
	}
}

func TestBrokenProtocolEndsServe(t *testing.T) {
	header := func(request, flags, size uint32) []byte {
		b := binary.LittleEndian.AppendUint32(nil, request)
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, flags), size)
	}
	tests := map[string][]byte{
		"version":        header(1, 2, 0),
		"a reply":        header(1, 5, 0),
		"huge payload":   header(1, 1, 1<<31),
		"failed request": append(header(8, 1, 8), virtiotest.State(7, 64)...),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			f, _, result := serve(t)
			if _, err := f.Conn.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := <-result; !errors.Is(err, errMessage) {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

// FuzzRequest feeds any request to a server that has a running queue.
func FuzzRequest(f *testing.F) {
	for r := range uint32(42) {
		f.Add(r, virtiotest.State(0, 1))
		f.Add(r, virtiotest.U64(0))
	}
	f.Add(uint32(5), virtiotest.MemTable(0, 4096, 0, 0))
	f.Add(uint32(24), append(virtiotest.State(0, 8), make([]byte, 12)...))
	f.Fuzz(func(t *testing.T, r uint32, payload []byte) {
		_, conn := virtiotest.NewFrontend(t)
		s := NewServer(conn, newUpper(), func(error) {})
		defer s.release()
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := file.Truncate(1 << 16); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{0, 1} {
			var fds []int
			if n == 1 {
				fd, err := unix.Dup(int(file.Fd()))
				if err != nil {
					t.Fatal(err)
				}
				fds = []int{fd}
			}
			_, _ = s.handle(Request(r), slices.Clone(payload), &fds)
			closeAll(fds)
		}
	})
}
