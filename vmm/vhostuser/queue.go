package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Layout and flags of a split virtqueue (virtio 1.2 sections 2.7.5 to 2.7.8).
const (
	descSize     = 16
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1

	ringHeader   = 4 // flags and index, of both the available and the used ring
	usedElemSize = 8
	eventSize    = 2

	maxQueueSize = 1024
)

// ErrRing says that the guest broke the rules of the virtqueue. The ring is
// then dead until the guest resets its device.
var ErrRing = errors.New("virtqueue fault by the guest")

// Queue is one split virtqueue, seen from the device.
//
// Its guest memory may vanish between two uses (the front-end moves or stops
// it), so all work is done between Lock and Unlock.
type Queue struct {
	mu      sync.Mutex
	running bool
	err     error

	mem               *Memory
	size              uint16
	desc, avail, used []byte
	eventIdx          bool

	lastAvail uint16 // next entry of the available ring to take
	availIdx  uint16 // the guest's index as last seen
	usedIdx   uint16
	signalled uint16 // usedIdx when the guest was last told
	first     bool   // nothing was published since the start
	quiet     bool   // the guest was asked not to notify (without EVENT_IDX)

	// Buffers that were deferred and are not answered yet. epoch changes when they
	// are given up.
	deferred int
	epoch    uint64
	draining bool
	drained  *sync.Cond

	notify     func() // interrupts the guest
	chain      Chain
	fenceStore atomic.Uint32
	fenceLoad  atomic.Uint32
}

// Chain is one buffer that the guest made available: first what the device
// reads, then what it writes. It is valid until the next call of Next or Unlock.
type Chain struct {
	head     uint16
	Readable Segments
	Writable Segments
}

// Segments is a buffer in pieces.
type Segments [][]byte

// Len is the number of bytes in s. Pieces may overlap and be many, so it may
// exceed the guest's memory.
func (s Segments) Len() uint64 {
	var n uint64
	for _, b := range s {
		n += uint64(len(b))
	}
	return n
}

// CopyOut copies from s, beginning at offset, to dst and returns how many bytes it got.
func (s Segments) CopyOut(dst []byte, offset uint64) int {
	var n int
	for _, b := range s {
		if offset >= uint64(len(b)) {
			offset -= uint64(len(b))
			continue
		}
		n += copy(dst[n:], b[offset:])
		offset = 0
		if n == len(dst) {
			break
		}
	}
	return n
}

// CopyIn copies src into s, beginning at offset, and returns how many bytes fitted.
func (s Segments) CopyIn(src []byte, offset uint64) int {
	var n int
	for _, b := range s {
		if offset >= uint64(len(b)) {
			offset -= uint64(len(b))
			continue
		}
		n += copy(b[offset:], src[n:])
		offset = 0
		if n == len(src) {
			break
		}
	}
	return n
}

// start binds q to its rings; the addresses are the front-end's.
func (q *Queue) start(mem *Memory, size uint16, addr vringAddr, base uint16, eventIdx bool, notify func()) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.bind(mem, size, addr); err != nil {
		return err
	}
	q.eventIdx, q.notify = eventIdx, notify
	q.lastAvail, q.availIdx = base, base
	q.usedIdx = load16(q.used, 2)
	q.signalled, q.first, q.quiet = q.usedIdx, true, false
	q.err, q.running, q.draining = nil, true, false
	if q.drained == nil {
		q.drained = sync.NewCond(&q.mu)
	}
	return nil
}

// bind finds the rings in mem. The caller holds q.mu.
func (q *Queue) bind(mem *Memory, size uint16, addr vringAddr) error {
	if size == 0 || size&(size-1) != 0 || size > maxQueueSize {
		return fmt.Errorf("%w: queue of %d entries", errMessage, size)
	}
	if addr.Desc%descSize != 0 || addr.Avail%2 != 0 || addr.Used%4 != 0 {
		return fmt.Errorf("%w: ring is not aligned", errMessage)
	}
	n := uint64(size)
	desc, err := mem.user(addr.Desc, n*descSize)
	if err != nil {
		return fmt.Errorf("descriptor table: %w", err)
	}
	avail, err := mem.user(addr.Avail, ringHeader+2*n+eventSize)
	if err != nil {
		return fmt.Errorf("available ring: %w", err)
	}
	used, err := mem.user(addr.Used, ringHeader+usedElemSize*n+eventSize)
	if err != nil {
		return fmt.Errorf("used ring: %w", err)
	}
	// The front-end's addresses were aligned, ours must be as well.
	if !aligned(avail, 2) || !aligned(used, 4) {
		return fmt.Errorf("%w: ring is not aligned", errMessage)
	}
	q.mem, q.size, q.desc, q.avail, q.used = mem, size, desc, avail, used
	return nil
}

// stop takes the rings away and returns where to go on later. It waits for the
// answers to all deferred buffers first: the guest would wait for them for ever.
func (q *Queue) stop() (base uint16) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.draining = true
	for q.deferred > 0 {
		q.drained.Wait()
	}
	q.running, q.notify = false, nil
	q.mem, q.desc, q.avail, q.used = nil, nil, nil, nil
	q.chain = Chain{}
	return q.lastAvail
}

// move binds a running queue to the same rings in a new memory. A queue whose
// rings are not there any more is dead.
func (q *Queue) move(mem *Memory, size uint16, addr vringAddr) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	err := q.bind(mem, size, addr)
	if err != nil {
		q.running, q.mem, q.desc, q.avail, q.used = false, nil, nil, nil, nil
	}
	return err
}

// abandon gives up the deferred buffers, for a guest that is gone.
func (q *Queue) abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.epoch++
	q.draining = true
	q.deferred = 0
	if q.drained != nil {
		q.drained.Broadcast()
	}
}

// setNotify replaces how the guest is interrupted, and interrupts it once: it
// may have missed what the old way told it.
func (q *Queue) setNotify(notify func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.notify = notify
	notify()
}

// Lock begins a use of the queue. It returns false, and holds nothing, if the
// queue is not running or broken.
func (q *Queue) Lock() bool {
	q.mu.Lock()
	if !q.running || q.draining || q.err != nil {
		q.mu.Unlock()
		return false
	}
	return true
}

// Unlock publishes what was completed, interrupts the guest if it wants that,
// and ends the use.
func (q *Queue) Unlock() {
	q.publish()
	q.mu.Unlock()
}

// Next takes the next buffer that the guest has made available, nil if there
// is none; then the guest will kick when it adds one. An error, which wraps
// ErrRing, ends the queue.
func (q *Queue) Next() (*Chain, error) {
	if q.err != nil {
		return nil, q.err
	}
	if q.availIdx == q.lastAvail && !q.refill() {
		return nil, q.err
	}
	head := load16(q.avail, ringHeader+2*int(q.lastAvail&(q.size-1)))
	q.lastAvail++
	if err := q.walk(head); err != nil {
		q.err = err
		return nil, err
	}
	return &q.chain, nil
}

// Pending tells whether the guest has made another buffer available. The caller holds
// Lock.
func (q *Queue) Pending() bool {
	return q.err == nil && (q.availIdx != q.lastAvail || q.refresh())
}

// refill looks for new entries of the available ring; where there are none it
// asks for a notification before it looks once more.
func (q *Queue) refill() bool {
	if q.refresh() {
		if !q.eventIdx && !q.quiet {
			q.quiet = true
			store16(q.used, 0, usedNoNotify)
		}
		return true
	}
	if q.err != nil {
		return false
	}
	if q.eventIdx {
		store16(q.used, ringHeader+usedElemSize*int(q.size), q.lastAvail)
	} else {
		q.quiet = false
		store16(q.used, 0, 0)
	}
	q.fence()
	return q.refresh()
}

func (q *Queue) refresh() bool {
	q.availIdx = load16(q.avail, 2)
	n := q.availIdx - q.lastAvail
	if n > q.size {
		q.err = fmt.Errorf("%w: %d buffers in a ring of %d", ErrRing, n, q.size)
		return false
	}
	q.fence() // the entries are read after the index
	return n > 0
}

// Done gives the buffer back with the number of bytes that the device wrote.
// The guest sees it at Unlock.
func (q *Queue) Done(c *Chain, written uint32) {
	e := q.used[ringHeader+usedElemSize*int(q.usedIdx&(q.size-1)):]
	binary.LittleEndian.PutUint32(e, uint32(c.head))
	binary.LittleEndian.PutUint32(e[4:], written)
	q.usedIdx++
}

// Deferred names a buffer that is answered later.
type Deferred struct {
	head  uint16
	epoch uint64
}

// Defer keeps c, which Next has returned, beyond Unlock. Complete must follow, in
// any order. Nothing of the guest's memory is kept.
func (q *Queue) Defer(c *Chain) Deferred {
	q.deferred++
	return Deferred{c.head, q.epoch}
}

// Complete answers a deferred buffer with data, as much of it as fits. It must be
// called without Lock. Where the guest is gone nothing happens.
func (q *Queue) Complete(d Deferred, data []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d.epoch != q.epoch {
		return nil
	}
	q.deferred--
	if q.deferred == 0 {
		q.drained.Broadcast()
	}
	if !q.running || q.err != nil {
		return nil
	}
	// The memory may have been replaced, and the guest may have changed the
	// descriptors: all is looked up and checked once more.
	if err := q.walk(d.head); err != nil {
		q.err = err
		return err
	}
	q.Done(&q.chain, uint32(q.chain.Writable.CopyIn(data, 0)))
	q.publish()
	return nil
}

func (q *Queue) publish() {
	old := q.signalled
	if q.usedIdx == old {
		return
	}
	q.fence() // the buffers' contents before the index
	store16(q.used, 2, q.usedIdx)
	q.fence() // the index before the guest's wish is read
	var want bool
	if q.eventIdx {
		event := load16(q.avail, ringHeader+2*int(q.size))
		want = q.first || needEvent(event, q.usedIdx, old)
	} else {
		want = load16(q.avail, 0)&availNoInterrupt == 0
	}
	q.signalled, q.first = q.usedIdx, false
	if want && q.notify != nil {
		q.notify()
	}
}

// needEvent is vring_need_event of virtio 1.2 section 2.7.10: whether the step
// from old to now passes event.
func needEvent(event, now, old uint16) bool { return now-event-1 < now-old }

// walk fills q.chain from the descriptors that start at head.
func (q *Queue) walk(head uint16) error {
	c := &q.chain
	c.head, c.Readable, c.Writable = head, c.Readable[:0], c.Writable[:0]
	if head >= q.size {
		return fmt.Errorf("%w: descriptor %d of %d", ErrRing, head, q.size)
	}
	next := head
	// No chain is longer than the queue (virtio 1.2 section 2.7.5.3.1), so a
	// loop is found by counting.
	for range int(q.size) {
		// A copy, for the guest may change the descriptor at any time.
		d := readDesc(q.desc[descSize*int(next):])
		if d.flags&descIndirect != 0 {
			if d.flags&(descNext|descWrite) != 0 {
				return fmt.Errorf("%w: indirect descriptor with flags %#x", ErrRing, d.flags)
			}
			return q.walkIndirect(d)
		}
		if err := q.add(d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		if next = d.next; next >= q.size {
			return fmt.Errorf("%w: descriptor %d of %d", ErrRing, next, q.size)
		}
	}
	return fmt.Errorf("%w: descriptor chain without an end", ErrRing)
}

func (q *Queue) walkIndirect(table desc) error {
	n := table.length / descSize
	if n == 0 || table.length%descSize != 0 || n > maxQueueSize {
		return fmt.Errorf("%w: indirect table of %d bytes", ErrRing, table.length)
	}
	var buf [descSize]byte
	next := uint32(0)
	for range n {
		if err := q.readGuest(buf[:], table.addr+uint64(next)*descSize); err != nil {
			return err
		}
		d := readDesc(buf[:])
		if d.flags&descIndirect != 0 {
			return fmt.Errorf("%w: indirect table within an indirect table", ErrRing)
		}
		if err := q.add(d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		if next = uint32(d.next); next >= n {
			return fmt.Errorf("%w: descriptor %d of %d in an indirect table", ErrRing, next, n)
		}
	}
	return fmt.Errorf("%w: indirect descriptor chain without an end", ErrRing)
}

// readGuest fills dst from the guest's memory.
func (q *Queue) readGuest(dst []byte, addr uint64) error {
	for len(dst) > 0 {
		b, err := q.mem.guest(addr, uint32(len(dst)))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRing, err)
		}
		n := copy(dst, b)
		dst, addr = dst[n:], addr+uint64(n)
	}
	return nil
}

// add appends what d describes to the chain.
func (q *Queue) add(d desc) error {
	c := &q.chain
	for d.length > 0 {
		b, err := q.mem.guest(d.addr, d.length)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRing, err)
		}
		switch {
		case d.flags&descWrite != 0:
			c.Writable = append(c.Writable, b)
		case len(c.Writable) > 0:
			return fmt.Errorf("%w: a readable descriptor after a writable one", ErrRing)
		default:
			c.Readable = append(c.Readable, b)
		}
		d.addr, d.length = d.addr+uint64(len(b)), d.length-uint32(len(b))
	}
	return nil
}

type desc struct {
	addr        uint64
	length      uint32
	flags, next uint16
}

func readDesc(b []byte) desc {
	le := binary.LittleEndian
	return desc{le.Uint64(b), le.Uint32(b[8:]), le.Uint16(b[12:]), le.Uint16(b[14:])}
}

// fence orders all accesses to the guest's memory before it against all after
// it. Go has no fence of its own, but on each architecture here a sequentially
// consistent store followed by such a load is one: XCHG on amd64; on arm64 STLR
// keeps what precedes it before itself, LDAR what follows it after itself, and
// the two never change places.
func (q *Queue) fence() {
	q.fenceStore.Store(0)
	_ = q.fenceLoad.Load()
}

// load16 and store16 access the indexes that the guest accesses at the same
// time. Both sides are little-endian; an aligned access is never torn.
func load16(b []byte, off int) uint16 { return *(*uint16)(unsafe.Pointer(&b[off])) }

func store16(b []byte, off int, v uint16) { *(*uint16)(unsafe.Pointer(&b[off])) = v }

func aligned(b []byte, n uintptr) bool { return uintptr(unsafe.Pointer(&b[0]))%n == 0 }
