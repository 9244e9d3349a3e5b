package vsock

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vhostuser"
)

// closeTimeout is how long a closed stream waits for the guest to agree before
// it is reset (VSOCK_CLOSE_TIMEOUT in Linux's net/vmw_vsock).
const closeTimeout = 8 * time.Second

// state of a stream.
type state uint8

const (
	dialing     state = iota // the request is out
	established              // data flows
	closing                  // closed here; the guest has not agreed yet
	gone                     // not in the device's table any more
)

// Conn is one stream. It implements net.Conn and CloseWrite.
type Conn struct {
	dev  *Device
	flow flow

	// Guarded by the outbox's lock.
	pending  sends
	awaiting bool

	dialed   chan error    // answers Dial, one at most
	readable chan struct{} // holds a token when Read should look again
	writable chan struct{} // the same for Write
	closed   chan struct{} // closed by Close

	readMu, writeMu             sync.Mutex // one reader and one writer at a time
	readDeadline, writeDeadline *deadline

	mu        sync.Mutex
	state     state
	err       error  // what ended the stream, if not an orderly shutdown
	localShut uint32 // shutdown flags that we have sent or will send
	peerShut  uint32 // shutdown flags of the guest's
	in        buffer
	rxCnt     uint32 // bytes received
	fwdCnt    uint32 // bytes of them that Read has returned
	toldFwd   uint32 // fwdCnt as the guest last heard it
	txCnt     uint32 // bytes sent, or about to be
	peerAlloc uint32 // the guest's buffer
	peerFwd   uint32 // how much the guest has consumed
	linger    *time.Timer
}

func newConn(d *Device, f flow, s state, size int) *Conn {
	return &Conn{
		dev: d, flow: f, state: s,
		in:            buffer{limit: size},
		dialed:        make(chan error, 1),
		readable:      make(chan struct{}, 1),
		writable:      make(chan struct{}, 1),
		closed:        make(chan struct{}),
		readDeadline:  newDeadline(),
		writeDeadline: newDeadline(),
	}
}

// wake puts a token into c unless there is one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// header makes the header of a packet and notes what the guest learns from it.
func (c *Conn) header(op uint16) header {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.toldFwd = c.fwdCnt
	h := header{
		SrcCID: vmm.HostCID, DstCID: GuestCID, SrcPort: c.flow.host, DstPort: c.flow.guest,
		Type: typeStream, Op: op, BufAlloc: uint32(c.in.limit), FwdCnt: c.fwdCnt,
	}
	if op == opShutdown {
		h.Flags = c.localShut
	}
	return h
}

// receive takes a packet of this stream from the guest. It is called with the
// transmit queue locked and only posts answers; the queue's owner sends them.
func (c *Conn) receive(h *header, p vhostuser.Segments) {
	c.mu.Lock()
	answer, remove := c.handle(h, p)
	c.mu.Unlock()
	if remove {
		c.dev.remove(c)
	}
	if answer != 0 {
		c.dev.out.post(c, answer)
	}
}

// handle is receive's core: the state machine. The caller holds c.mu.
func (c *Conn) handle(h *header, p vhostuser.Segments) (answer sends, remove bool) {
	if c.state == gone {
		return 0, false
	}
	if h.Op == opRST {
		if c.state == dialing {
			c.dialed <- vmm.ErrRefused
		}
		c.end(syscall.ECONNRESET)
		return 0, true
	}
	if !c.takeCredit(h) {
		return c.fault()
	}
	switch {
	case c.state == dialing && h.Op == opResponse:
		c.state = established
		c.dialed <- nil
		return 0, false
	case c.state == dialing:
		return c.fault()
	}
	switch h.Op {
	case opRW:
		return c.handleData(h, p)
	case opCreditUpdate:
		return 0, false
	case opCreditRequest:
		return sendCredit, false
	case opShutdown:
		c.peerShut |= h.Flags & shutBoth
		wake(c.readable)
		wake(c.writable)
		if c.peerShut == shutBoth {
			// The guest has closed; it waits for this reset (virtio 1.2
			// section 5.10.6.6.1). What it sent before stays to be read.
			c.end(nil)
			return sendReset, true
		}
		return 0, false
	}
	return c.fault()
}

func (c *Conn) handleData(h *header, p vhostuser.Segments) (answer sends, remove bool) {
	held := c.rxCnt - c.fwdCnt
	if c.peerShut&shutSend != 0 || h.Len > uint32(c.in.limit)-held {
		return c.fault()
	}
	if uint64(h.Len)+headerSize > p.Len() {
		return c.fault()
	}
	c.rxCnt += h.Len
	if c.state == closing {
		c.fwdCnt += h.Len // nobody will read it
		return 0, false
	}
	if h.Len > 0 && !c.in.fill(p, headerSize, int(h.Len)) {
		return c.fault()
	}
	wake(c.readable)
	return 0, false
}

// takeCredit notes the guest's buffer; false if the guest claims to have
// consumed what it never got.
func (c *Conn) takeCredit(h *header) bool {
	ahead := int32(h.FwdCnt - c.peerFwd)
	switch {
	case ahead < 0:
		// Linux fills in the counter before it queues the packet, so packets of
		// two threads may come in the wrong order.
		return true
	case uint32(ahead) > c.txCnt-c.peerFwd:
		return false
	}
	if ahead > 0 || h.BufAlloc != c.peerAlloc {
		c.peerFwd, c.peerAlloc = h.FwdCnt, h.BufAlloc
		wake(c.writable)
	}
	return true
}

// credit is how many bytes the guest has room for.
func (c *Conn) credit() uint32 {
	inFlight := c.txCnt - c.peerFwd
	if inFlight >= c.peerAlloc {
		return 0
	}
	return c.peerAlloc - inFlight
}

// fault ends a stream whose guest broke the rules.
func (c *Conn) fault() (answer sends, remove bool) {
	if c.state == dialing {
		c.dialed <- syscall.ECONNRESET
	}
	c.end(syscall.ECONNRESET)
	return sendReset, true
}

// end takes the stream out of use. The caller holds c.mu and removes it from the table.
func (c *Conn) end(err error) {
	c.state = gone
	if c.err == nil {
		c.err = err
	}
	if c.linger != nil {
		c.linger.Stop()
	}
	wake(c.readable)
	wake(c.writable)
}

// reset ends the stream from our side; tell says whether the guest is to know.
func (c *Conn) reset(err error, tell bool) {
	c.mu.Lock()
	if c.state == gone {
		c.mu.Unlock()
		return
	}
	if c.state == dialing {
		select {
		case c.dialed <- err:
		default:
		}
	}
	c.end(err)
	c.mu.Unlock()
	c.dev.remove(c)
	if tell {
		c.dev.post(c, sendReset)
	}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		passed := c.readDeadline.wait()
		if isClosed(c.closed) {
			return 0, c.opError("read", net.ErrClosed)
		}
		if isClosed(passed) {
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		}
		n, credit, err := c.tryRead(p)
		if credit {
			c.dev.post(c, sendCredit)
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-c.readable:
		case <-passed:
		case <-c.closed:
		}
	}
}

// tryRead takes what is there, and says whether the guest should hear about it.
func (c *Conn) tryRead(p []byte) (n int, credit bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n = c.in.drain(p); n > 0 {
		c.fwdCnt += uint32(n)
		// A quarter of the window: rarely enough to cost nothing, often enough
		// that the guest never runs dry while we read.
		credit = c.fwdCnt-c.toldFwd >= uint32(c.in.limit/4) && c.state == established && c.peerShut&shutSend == 0
		return n, credit, nil
	}
	switch {
	case c.err != nil:
		return 0, false, c.opError("read", c.err)
	case c.peerShut&shutSend != 0:
		return 0, false, io.EOF
	}
	return 0, false, nil
}

// Write implements net.Conn. It returns when the guest's kernel has the bytes.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	for n < len(p) {
		passed := c.writeDeadline.wait()
		if isClosed(c.closed) {
			return n, c.opError("write", net.ErrClosed)
		}
		if isClosed(passed) {
			return n, c.opError("write", os.ErrDeadlineExceeded)
		}
		sent, err := c.tryWrite(p[n:])
		n += sent
		if err != nil {
			return n, c.opError("write", err)
		}
		if sent > 0 {
			continue
		}
		select {
		case <-c.writable:
		case <-passed:
		case <-c.closed:
		}
	}
	return n, nil
}

// tryWrite sends as much of p as the guest's credit and buffers allow. If that
// is nothing, a token in c.writable will tell when to try again.
func (c *Conn) tryWrite(p []byte) (int, error) {
	c.mu.Lock()
	switch {
	case c.err != nil:
		err := c.err
		c.mu.Unlock()
		return 0, err
	case c.localShut&shutSend != 0 || c.peerShut&shutReceive != 0:
		c.mu.Unlock()
		return 0, syscall.EPIPE
	}
	want := uint32(min(uint64(len(p)), uint64(c.credit())))
	c.txCnt += want
	c.mu.Unlock()
	if want == 0 {
		return 0, nil
	}
	n, err := c.dev.send(c, p[:want])
	if n == 0 && err == nil {
		// Once more after c is in the list of those who wait, or a kick in
		// between would be lost.
		c.dev.out.await(c)
		n, err = c.dev.send(c, p[:want])
	}
	if rest := want - uint32(n); rest > 0 {
		c.mu.Lock()
		c.txCnt -= rest
		c.mu.Unlock()
	}
	return n, err
}

// CloseWrite tells the guest that no more data will come.
func (c *Conn) CloseWrite() error {
	// After the Write that is under way.
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.mu.Lock()
	if c.state != established {
		err := c.err
		c.mu.Unlock()
		if isClosed(c.closed) {
			err = net.ErrClosed
		}
		if err != nil {
			return c.opError("close", err)
		}
		return nil
	}
	c.localShut |= shutSend
	c.mu.Unlock()
	c.dev.post(c, sendShutdown)
	return nil
}

// Close implements net.Conn. What was written still reaches the guest.
func (c *Conn) Close() error {
	c.mu.Lock()
	if isClosed(c.closed) {
		c.mu.Unlock()
		return nil
	}
	close(c.closed)
	c.in.n = 0
	c.in.drop()
	if c.state != established {
		c.mu.Unlock()
		return nil
	}
	c.state = closing
	c.fwdCnt = c.rxCnt
	c.localShut = shutBoth
	c.linger = time.AfterFunc(closeTimeout, func() { c.reset(syscall.ETIMEDOUT, true) })
	c.mu.Unlock()
	c.dev.post(c, sendShutdown)
	return nil
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return Addr{vmm.HostCID, c.flow.host} }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return Addr{GuestCID, c.flow.guest} }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.readDeadline.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.writeDeadline.set(t)
	return nil
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: network, Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
