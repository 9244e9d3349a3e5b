package usernet

import (
	"container/list"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// flowTimeout is how long a UDP flow may be idle; RFC 4787, REQ-5, asks for at
// least two minutes.
const flowTimeout = 2 * time.Minute

// forwardUDP makes a flow for the first datagram from one port of the guest to
// one of a server. It runs where packets come in and must not wait. What it
// returns false for, the stack calls unreachable.
func (n *Network) forwardUDP(r *udp.ForwarderRequest) bool {
	id := r.ID()
	targets := n.target(addrPort(id.LocalAddress, id.LocalPort))
	if len(targets) == 0 {
		return false
	}
	server, err := dialHostUDP(targets[0])
	if err != nil {
		return false
	}
	wq := new(waiter.Queue)
	ep, terr := r.CreateEndpoint(wq)
	if terr != nil {
		server.close()
		return true // it cannot be had at the moment
	}
	n.carry(guestUDP{ep, wq}, server, nil)
	return true
}

// carry makes a flow that copies datagrams between two sockets until one has
// ended, nothing went through for flowTimeout, or others need its place. Then
// it closes both and calls ended, if that is not nil.
func (n *Network) carry(a, b datagramConn, ended func()) {
	f := n.flows.add(func() {
		a.close()
		b.close()
		if ended != nil {
			ended()
		}
	})
	copyAll := func(dst, src datagramConn) func() {
		return func() {
			defer n.flows.end(f)
			for n.flows.used(f) && src.receive(dst.send) == nil {
			}
		}
	}
	if !n.spawn(copyAll(a, b)) || !n.spawn(copyAll(b, a)) {
		n.flows.end(f)
	}
}

// flows are the UDP flows, least recently used first.
type flows struct {
	limit int

	mu     sync.Mutex
	closed bool
	order  list.List // of *flow
}

type flow struct {
	element *list.Element // nil once it has ended
	last    time.Time     // when something went through
	timer   *time.Timer
	close   func()
}

// add notes a new flow, and ends the one that was idle for longest if there are
// too many. After close, the new one ends at once.
func (fs *flows) add(closeBoth func()) *flow {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for fs.order.Len() >= fs.limit {
		fs.endLocked(fs.order.Front().Value.(*flow))
	}
	f := &flow{last: time.Now(), close: closeBoth}
	f.element = fs.order.PushBack(f)
	f.timer = time.AfterFunc(flowTimeout, func() { fs.expire(f) })
	if fs.closed {
		fs.endLocked(f)
	}
	return f
}

// used notes that something went through; false once the flow has ended.
func (fs *flows) used(f *flow) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.element == nil {
		return false
	}
	f.last = time.Now()
	fs.order.MoveToBack(f.element)
	return true
}

// expire ends a flow that was idle, or waits on.
func (fs *flows) expire(f *flow) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.element == nil {
		return
	}
	if rest := flowTimeout - time.Since(f.last); rest > 0 {
		f.timer.Reset(rest)
		return
	}
	fs.endLocked(f)
}

func (fs *flows) end(f *flow) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.endLocked(f)
}

func (fs *flows) endLocked(f *flow) {
	if f.element == nil {
		return
	}
	fs.order.Remove(f.element)
	f.element = nil
	f.timer.Stop()
	f.close()
}

// close ends all flows; there will be no more.
func (fs *flows) close() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.closed = true
	for fs.order.Len() > 0 {
		fs.endLocked(fs.order.Front().Value.(*flow))
	}
}
