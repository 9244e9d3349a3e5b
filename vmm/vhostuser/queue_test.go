package vhostuser

import (
	"encoding/binary"
	"errors"
	"testing"
	"unsafe"
)

// newTestQueue returns a running queue of 8 entries over memory, which begins
// with its rings: descriptors, available ring, used ring.
func newTestQueue(t testing.TB, memory []byte) *Queue {
	t.Helper()
	const userBase, guestBase = 0x10000, 0x5000
	half := uint64(len(memory) / 2)
	// Two regions that adjoin in the guest, so that buffers cross the border.
	mem := &Memory{regions: []region{
		{regionInfo: regionInfo{GuestAddr: guestBase, Size: half, UserAddr: userBase}, data: memory[:half]},
		{regionInfo: regionInfo{GuestAddr: guestBase + half, Size: half, UserAddr: userBase + 1<<32}, data: memory[half:]},
	}}
	q := &Queue{}
	addr := vringAddr{Desc: userBase, Avail: userBase + 128, Used: userBase + 256}
	if err := q.start(mem, 8, addr, binary.LittleEndian.Uint16(memory[258:]), true, func() {}); err != nil {
		t.Fatal(err)
	}
	return q
}

// FuzzChain lets the guest have anything in its memory. No chain may lead
// outside of it or never end.
func FuzzChain(f *testing.F) {
	seed := make([]byte, 4096)
	binary.LittleEndian.PutUint64(seed, 0x5400)
	binary.LittleEndian.PutUint32(seed[8:], 100)
	binary.LittleEndian.PutUint16(seed[12:], descNext)
	binary.LittleEndian.PutUint16(seed[14:], 1)
	binary.LittleEndian.PutUint64(seed[16:], 0x57f0)
	binary.LittleEndian.PutUint32(seed[24:], 32)
	binary.LittleEndian.PutUint16(seed[28:], descWrite)
	binary.LittleEndian.PutUint16(seed[130:], 1)
	f.Add(seed)
	indirect := append([]byte(nil), seed...)
	binary.LittleEndian.PutUint16(indirect[12:], descIndirect)
	binary.LittleEndian.PutUint32(indirect[8:], 32)
	f.Add(indirect)
	f.Fuzz(func(t *testing.T, guest []byte) {
		memory := alignedBytes(4096)
		copy(memory, guest)
		q := newTestQueue(t, memory)
		if !q.Lock() {
			t.Fatal("not running")
		}
		defer q.Unlock()
		for range 20 {
			c, err := q.Next()
			if err != nil {
				if !errors.Is(err, ErrRing) {
					t.Fatal(err)
				}
				return
			}
			if c == nil {
				return
			}
			for _, s := range []Segments{c.Readable, c.Writable} {
				for _, b := range s {
					at := uintptr(unsafe.Pointer(&b[0])) - uintptr(unsafe.Pointer(&memory[0]))
					if at+uintptr(len(b)) > uintptr(len(memory)) {
						t.Fatal("a buffer outside the memory")
					}
				}
			}
			// Reading only: writing would change what is being walked, which is
			// allowed but makes findings hard to repeat.
			c.Readable.CopyOut(make([]byte, 100), 3)
			q.Done(c, 0)
		}
	})
}

func alignedBytes(n int) []byte {
	words := make([]uint64, n/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), n)
}

func TestBufferAcrossRegions(t *testing.T) {
	memory := alignedBytes(4096)
	for i := range memory[2048-8 : 2048+8] {
		memory[2048-8+i] = byte('a' + i)
	}
	le := binary.LittleEndian
	le.PutUint64(memory, 0x5000+2048-8)
	le.PutUint32(memory[8:], 16)
	le.PutUint16(memory[130:], 1)
	q := newTestQueue(t, memory)
	if !q.Lock() {
		t.Fatal("not running")
	}
	defer q.Unlock()
	c, err := q.Next()
	if err != nil || c == nil {
		t.Fatal(c, err)
	}
	got := make([]byte, 20)
	if n := c.Readable.CopyOut(got, 0); string(got[:n]) != "abcdefghijklmnop" {
		t.Errorf("read %q", got[:n])
	}
	if n := c.Readable.CopyOut(got, 10); string(got[:n]) != "klmnop" {
		t.Errorf("read %q from the middle", got[:n])
	}
}

func TestNeedEvent(t *testing.T) {
	tests := []struct {
		event, now, old uint16
		want            bool
	}{
		{5, 6, 5, true},
		{5, 5, 4, false},
		{5, 10, 6, false},
		{5, 10, 4, true},
		{65535, 0, 65535, true},
		{0, 1, 65535, true},
		{1, 1, 65535, false},
	}
	for _, tt := range tests {
		if got := needEvent(tt.event, tt.now, tt.old); got != tt.want {
			t.Errorf("needEvent(%d, %d, %d) = %v", tt.event, tt.now, tt.old, got)
		}
	}
}
