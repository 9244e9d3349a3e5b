// Package virtiotest is the other side of a vhost-user device, for tests: the
// VMM's half of the protocol and a guest's driver, good or bad, on real shared
// memory and event files.
package virtiotest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// MemorySize is the size of the guest's memory, GuestBase its physical
	// address and UserBase where the VMM would have it.
	MemorySize = 4 << 20
	GuestBase  = 0x10_0000
	UserBase   = 0x7f00_0000_0000

	// QueueSize is the number of descriptors of each queue.
	QueueSize = 64
	// BufferSize is the size of the one buffer that each descriptor has.
	BufferSize = 8 << 10

	queueArea  = 1 << 20 // memory for one queue: its rings, then its buffers
	availAt    = 16 * QueueSize
	usedAt     = 4096
	bufferArea = 8192
)

// Timeout bounds every wait, so that a lost wakeup fails a test.
const Timeout = 20 * time.Second

// Frontend is the VMM's side of a vhost-user connection.
type Frontend struct {
	t      testing.TB
	Conn   *net.UnixConn
	file   *os.File
	Memory []byte
	queues []*Queue
}

// Queue is a virtqueue as a guest's driver has it.
type Queue struct {
	f          *Frontend
	index      int
	base       int // offset in the memory
	Kick, Call *os.File
	availIdx   uint16
	lastUsed   uint16
}

// NewFrontend returns a front-end and the connection that the device serves.
// Both end with the test.
func NewFrontend(t testing.TB) (*Frontend, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := &Frontend{t: t, Conn: conns[0], file: os.NewFile(uintptr(fd), "guest")}
	t.Cleanup(func() { _ = f.file.Close() })
	if err := f.file.Truncate(MemorySize); err != nil {
		t.Fatal(err)
	}
	if f.Memory, err = unix.Mmap(fd, 0, MemorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(f.Memory) })
	return f, conns[1]
}

// Send sends one message; fds go with it.
func (f *Frontend) Send(request, flags uint32, payload []byte, fds ...int) error {
	b := binary.LittleEndian.AppendUint32(nil, request)
	b = binary.LittleEndian.AppendUint32(b, 1|flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := f.Conn.WriteMsgUnix(append(b, payload...), oob, nil)
	return err
}

// Reply reads one reply and returns its payload.
func (f *Frontend) Reply() ([]byte, error) {
	_ = f.Conn.SetReadDeadline(time.Now().Add(Timeout))
	var h [12]byte
	if _, err := io.ReadFull(f.Conn, h[:]); err != nil {
		return nil, err
	}
	payload := make([]byte, binary.LittleEndian.Uint32(h[8:]))
	_, err := io.ReadFull(f.Conn, payload)
	return payload, err
}

// Ask sends a message and returns the reply that it has.
func (f *Frontend) Ask(request uint32, payload []byte) []byte {
	f.t.Helper()
	err := f.Send(request, 0, payload)
	var reply []byte
	if err == nil {
		reply, err = f.Reply()
	}
	if err != nil {
		f.t.Fatalf("request %d: %v", request, err)
	}
	return reply
}

// Do sends a message, asks for an acknowledgement and fails the test if it is bad.
func (f *Frontend) Do(request uint32, payload []byte, fds ...int) {
	f.t.Helper()
	if code := f.Try(request, payload, fds...); code != 0 {
		f.t.Fatalf("request %d was refused", request)
	}
}

// Try is Do, but returns the acknowledgement.
func (f *Frontend) Try(request uint32, payload []byte, fds ...int) uint64 {
	f.t.Helper()
	err := f.Send(request, 8, payload, fds...)
	var reply []byte
	if err == nil {
		reply, err = f.Reply()
	}
	if err != nil || len(reply) != 8 {
		f.t.Fatalf("request %d: reply %x, %v", request, reply, err)
	}
	return binary.LittleEndian.Uint64(reply)
}

// U64 is the payload of requests with one number.
func U64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// State is the payload of requests about one ring.
func State(index, num uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, index), num)
}

// Negotiate agrees on all features that the device offers, masked, and gives it the memory.
func (f *Frontend) Negotiate(mask uint64) {
	f.t.Helper()
	f.Do0(3, nil)
	features := binary.LittleEndian.Uint64(f.Ask(1, nil))
	f.Do0(16, f.Ask(15, nil))
	f.Do(2, U64(features&mask))
	f.SetMemory()
}

// Do0 sends a message that has no answer.
func (f *Frontend) Do0(request uint32, payload []byte) {
	f.t.Helper()
	if err := f.Send(request, 0, payload); err != nil {
		f.t.Fatal(err)
	}
}

// SetMemory announces the memory (again).
func (f *Frontend) SetMemory() {
	f.t.Helper()
	f.Do(5, MemTable(GuestBase, MemorySize, UserBase, 0), int(f.file.Fd()))
}

// MemTable is a memory table of one region.
func MemTable(guest, size, user, offset uint64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, 1)
	for _, v := range []uint64{guest, size, user, offset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// MemoryFD is the memory's file.
func (f *Frontend) MemoryFD() int { return int(f.file.Fd()) }

// StartQueue sets queue i up, from index base on, and enables it.
func (f *Frontend) StartQueue(i int, base uint16) *Queue {
	f.t.Helper()
	q := &Queue{f: f, index: i, base: i * queueArea, availIdx: base, lastUsed: base, Kick: f.eventfd(), Call: f.eventfd()}
	f.queues = append(f.queues, q)
	clear(f.Memory[q.base : q.base+bufferArea])
	*q.u16(availAt + 2) = base
	*q.u16(usedAt + 2) = base
	for d := range QueueSize {
		q.SetDesc(uint16(d), q.BufferAddr(uint16(d)), BufferSize, 0, 0)
	}
	f.Do(8, State(uint32(i), QueueSize))
	f.Do(10, State(uint32(i), uint32(base)))
	f.Do(9, q.Addr())
	f.Do(13, U64(uint64(i)), int(q.Call.Fd()))
	f.Do(12, U64(uint64(i)), int(q.Kick.Fd()))
	f.Do(18, State(uint32(i), 1))
	return q
}

// eventfd is non-blocking, as QEMU's are.
func (f *Frontend) eventfd() *os.File {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		f.t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "eventfd") // blocking for os: Fd() stays harmless
	if err := unix.SetNonblock(fd, true); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = file.Close() })
	return file
}

// Addr is SET_VRING_ADDR's payload.
func (q *Queue) Addr() []byte {
	b := State(uint32(q.index), 0)
	for _, off := range []int{0, usedAt, availAt} {
		b = binary.LittleEndian.AppendUint64(b, UserBase+uint64(q.base+off))
	}
	return append(b, make([]byte, 8)...)
}

func (q *Queue) u16(off int) *uint16 { return (*uint16)(unsafe.Pointer(&q.f.Memory[q.base+off])) }

// idx reads an index that the device writes at the same time: with its flags,
// as the aligned word that Go can load atomically.
func (q *Queue) idx(off int) uint16 {
	return uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&q.f.Memory[q.base+off]))) >> 16)
}

// BufferAddr is the guest's address of a descriptor's buffer.
func (q *Queue) BufferAddr(d uint16) uint64 {
	return GuestBase + uint64(q.base+bufferArea+int(d)*BufferSize)
}

// Buffer is that buffer.
func (q *Queue) Buffer(d uint16) []byte {
	at := q.base + bufferArea + int(d)*BufferSize
	return q.f.Memory[at : at+BufferSize]
}

// SetDesc writes a descriptor.
func (q *Queue) SetDesc(d uint16, addr uint64, length uint32, flags, next uint16) {
	PutDesc(q.f.Memory[q.base+16*int(d):], addr, length, flags, next)
}

// PutDesc writes a descriptor anywhere.
func PutDesc(b []byte, addr uint64, length uint32, flags, next uint16) {
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], length)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// Add makes the chain that starts at head available, without a kick.
func (q *Queue) Add(head uint16) {
	*q.u16(availAt + 4 + 2*int(q.availIdx%QueueSize)) = head
	q.availIdx++
	q.PublishAvail(q.availIdx)
}

// PublishAvail writes the available ring's index.
func (q *Queue) PublishAvail(idx uint16) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&q.f.Memory[q.base+availAt])), uint32(idx)<<16)
}

// Notify kicks the device.
func (q *Queue) Notify() {
	q.f.t.Helper()
	if _, err := unix.Write(int(q.Kick.Fd()), []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		q.f.t.Fatal(err)
	}
}

// Used waits for the next used buffer.
func (q *Queue) Used() (head uint16, length uint32) {
	q.f.t.Helper()
	head, length, err := q.UsedWithin(Timeout)
	if err != nil {
		q.f.t.Fatal(err)
	}
	return head, length
}

// UsedWithin is Used with a limit.
func (q *Queue) UsedWithin(limit time.Duration) (head uint16, length uint32, err error) {
	for deadline := time.Now().Add(limit); q.idx(usedAt) == q.lastUsed; time.Sleep(50 * time.Microsecond) {
		if time.Now().After(deadline) {
			return 0, 0, fmt.Errorf("queue %d: no used buffer", q.index)
		}
	}
	e := q.f.Memory[q.base+usedAt+4+8*int(q.lastUsed%QueueSize):]
	q.lastUsed++
	// The guest wants to be told about the next one.
	*q.u16(availAt + 4 + 2*QueueSize) = q.lastUsed
	return uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:]), nil
}

// WaitCall waits for an interrupt.
func (q *Queue) WaitCall() {
	q.f.t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(q.Call.Fd()), Events: unix.POLLIN}}, int(Timeout.Milliseconds()))
	if n != 1 || err != nil {
		q.f.t.Fatalf("queue %d: no interrupt: %v", q.index, err)
	}
	var b [8]byte
	_, _ = unix.Read(int(q.Call.Fd()), b[:])
}

// Stop asks for the queue's base, which stops it, and returns it.
func (q *Queue) Stop() uint16 {
	q.f.t.Helper()
	return uint16(binary.LittleEndian.Uint32(q.f.Ask(11, State(uint32(q.index), 0))[4:]))
}
