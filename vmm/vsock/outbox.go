package vsock

import (
	"math/bits"
	"sync"
)

// sends is a set of packets without data that a stream has to send. They go out
// in the order of their bits.
type sends uint8

const (
	sendRequest sends = 1 << iota
	sendResponse
	sendCredit
	sendShutdown
	sendReset
)

// ops are the operations of the bits of sends.
var ops = [...]uint16{opRequest, opResponse, opCreditUpdate, opShutdown, opRST}

// outbox holds what waits for room in the guest's receive queue. A stream is in
// it at most once and says what it needs only when its turn comes, so the outbox
// is bounded by the number of streams and credit updates coalesce by themselves.
//
// Whoever takes from it holds the receive queue's lock.
type outbox struct {
	mu      sync.Mutex
	streams []*Conn
	resets  []header // for packets of no stream
	senders []*Conn  // streams whose data waits for room
}

func (o *outbox) post(c *Conn, what sends) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.pending == 0 {
		o.streams = append(o.streams, c)
	}
	c.pending |= what
}

// postReset drops the packet when too many wait: the guest does not take them.
func (o *outbox) postReset(h header) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.resets) < maxResets {
		o.resets = append(o.resets, h)
	}
}

func (o *outbox) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.streams)
}

func (o *outbox) empty() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.streams)+len(o.resets) == 0
}

// take returns the next packet; there must be one.
func (o *outbox) take() header {
	o.mu.Lock()
	if len(o.resets) > 0 {
		h := o.resets[0]
		o.resets = o.resets[1:]
		o.mu.Unlock()
		return h
	}
	c := o.streams[0]
	bit := bits.TrailingZeros8(uint8(c.pending))
	if c.pending &^= 1 << bit; c.pending == 0 {
		o.streams = o.streams[1:]
	}
	o.mu.Unlock()
	return c.header(ops[bit])
}

// await has c woken when the guest offers room again.
func (o *outbox) await(c *Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !c.awaiting {
		c.awaiting = true
		o.senders = append(o.senders, c)
	}
}

func (o *outbox) wakeSenders() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, c := range o.senders {
		c.awaiting = false
		wake(c.writable)
		o.senders[i] = nil
	}
	o.senders = o.senders[:0]
}
