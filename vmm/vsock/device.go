package vsock

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vhostuser"
)

// GuestCID is the context identifier of every guest. A device has one guest, so
// the number tells nobody apart; the first that is not reserved will do.
const GuestCID = 3

// The device's queues (virtio 1.2 section 5.10.2). The third, for events, stays
// with the VMM.
const (
	queueRX = iota // to the guest
	queueTX        // from the guest
	numQueues
)

const (
	// firstPort is the first of the host's ports for Dial. Low ones are left
	// to Listen.
	firstPort = 1 << 30
	// maxResets bounds the answers to packets of no stream that wait for the guest.
	maxResets = 1024
	// batch is how many packets of data are handled before the other side gets
	// to see them and others get the queue: 64 KiB towards a Linux guest, whose
	// receive buffers are pages.
	batch = 16
)

// errEnded is what streams report when the machine is gone.
var errEnded = fmt.Errorf("the machine has ended: %w", syscall.ECONNRESET)

// Device is the virtio socket device of one guest. It implements
// vhostuser.Device.
type Device struct {
	queues [numQueues]*vhostuser.Queue
	out    outbox
	done   chan struct{}

	mu        sync.Mutex
	streams   map[flow]*Conn
	listeners map[uint32]*Listener
	nextPort  uint32
	err       error // why nothing works any more
}

// flow names a stream: both CIDs are constant.
type flow struct{ host, guest uint32 }

// New returns a device without a guest; vhostuser.NewServer brings one.
func New() *Device {
	return &Device{
		queues:    [numQueues]*vhostuser.Queue{{}, {}},
		done:      make(chan struct{}),
		streams:   map[flow]*Conn{},
		listeners: map[uint32]*Listener{},
		nextPort:  firstPort,
	}
}

// Features implements vhostuser.Device. Without VIRTIO_VSOCK_F_SEQPACKET
// stream sockets are what there is.
func (d *Device) Features() uint64 { return 0 }

// Queues implements vhostuser.Device.
func (d *Device) Queues() []*vhostuser.Queue { return d.queues[:] }

// Config implements vhostuser.Device: struct virtio_vsock_config.
func (d *Device) Config() []byte { return binary.LittleEndian.AppendUint64(nil, GuestCID) }

// HandleQueue implements vhostuser.Device.
func (d *Device) HandleQueue(i int) error {
	if i == queueTX {
		return d.receiveAll()
	}
	err := d.flush()
	d.out.wakeSenders()
	return err
}

// Listen accepts the guest's connections to the host's port.
func (d *Device) Listen(port uint32) (*Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: Addr{vmm.HostCID, port}, Err: d.err}
	}
	if d.listeners[port] != nil || port >= firstPort {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: Addr{vmm.HostCID, port}, Err: syscall.EADDRINUSE}
	}
	l := &Listener{dev: d, port: port, backlog: make(chan *Conn, backlog), done: make(chan struct{})}
	d.listeners[port] = l
	return l, nil
}

// Dial connects to the guest's port. It returns vmm.ErrRefused if nobody
// listens there, and ctx's error if the guest does not answer in time.
func (d *Device) Dial(ctx context.Context, port uint32) (*Conn, error) {
	c, err := d.connect(port)
	if err == nil {
		d.post(c, sendRequest)
		select {
		case err = <-c.dialed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			c.reset(err, true)
			d.remove(c) // whoever else has ended it may not be that far
		}
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: Addr{GuestCID, port}, Err: err}
	}
	return c, nil
}

// connect enters a stream to the guest's port.
func (d *Device) connect(port uint32) (*Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, d.err
	}
	// Given-up dials may wait in the outbox while the guest takes nothing.
	if len(d.streams) >= maxStreams || d.out.len() >= 2*maxStreams {
		return nil, fmt.Errorf("%d streams are open: %w", len(d.streams), syscall.EMFILE)
	}
	f := flow{d.nextPort, port}
	for d.streams[f] != nil {
		f.host = nextPort(f.host)
	}
	d.nextPort = nextPort(f.host)
	return d.add(f, dialing), nil
}

func nextPort(p uint32) uint32 {
	if p++; p < firstPort || p == ^uint32(0) { // VMADDR_PORT_ANY
		return firstPort
	}
	return p
}

// add makes a stream. The caller holds d.mu.
func (d *Device) add(f flow, s state) *Conn {
	size := window
	if len(d.streams) >= fullWindows {
		size = smallWindow
	}
	c := newConn(d, f, s, size)
	d.streams[f] = c
	return c
}

func (d *Device) remove(c *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.streams[c.flow] == c {
		delete(d.streams, c.flow)
	}
}

// Close ends all streams and listeners: the guest is gone.
func (d *Device) Close() error {
	d.fail(errEnded)
	return nil
}

// fail ends the device for a reason.
func (d *Device) fail(err error) {
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return
	}
	d.err = err
	close(d.done)
	streams, listeners := d.streams, d.listeners
	d.streams, d.listeners = map[flow]*Conn{}, map[uint32]*Listener{}
	d.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close()
	}
	for _, c := range streams {
		c.reset(err, false)
	}
}

// receiveAll takes what the guest has sent.
func (d *Device) receiveAll() error {
	q := d.queues[queueTX]
	for more := true; more; {
		if !q.Lock() {
			return nil
		}
		for range batch {
			chain, err := q.Next()
			if err != nil {
				q.Unlock()
				d.fail(err)
				return err
			}
			if more = chain != nil; !more {
				break
			}
			d.receive(chain.Readable)
			q.Done(chain, 0)
		}
		q.Unlock()
		if err := d.flush(); err != nil {
			return err
		}
	}
	return nil
}

// receive takes one packet. What belongs to no stream is answered as the
// standard says; what is not even ours is dropped.
func (d *Device) receive(p vhostuser.Segments) {
	var b [headerSize]byte
	if p.CopyOut(b[:], 0) < headerSize {
		return
	}
	h := parseHeader(&b)
	if h.SrcCID != GuestCID || h.DstCID != vmm.HostCID {
		return
	}
	if h.Type != typeStream {
		d.refuse(&h)
		return
	}
	f := flow{h.DstPort, h.SrcPort}
	d.mu.Lock()
	c := d.streams[f]
	d.mu.Unlock()
	switch {
	case c != nil:
		c.receive(&h, p)
	case h.Op == opRequest:
		d.accept(f, &h)
	default:
		d.refuse(&h)
	}
}

// accept answers the guest's request for a new stream.
func (d *Device) accept(f flow, h *header) {
	d.mu.Lock()
	l := d.listeners[f.host]
	if l == nil || l.full() || len(d.streams) >= maxStreams || h.FwdCnt != 0 {
		d.mu.Unlock()
		d.refuse(h)
		return
	}
	c := d.add(f, established)
	c.peerAlloc = h.BufAlloc
	d.mu.Unlock()
	// The response first: whoever accepts may write at once.
	d.out.post(c, sendResponse)
	if !l.offer(c) {
		c.reset(syscall.ECONNRESET, false)
		d.out.post(c, sendReset)
	}
}

// refuse answers a packet that belongs to no stream with a reset.
func (d *Device) refuse(h *header) {
	if h.Op == opRST {
		return
	}
	d.out.postReset(header{
		SrcCID: vmm.HostCID, DstCID: GuestCID, SrcPort: h.DstPort, DstPort: h.SrcPort, Type: h.Type, Op: opRST,
	})
}

// post has a packet of c's sent as soon as the guest has room. The caller holds
// no lock.
func (d *Device) post(c *Conn, what sends) {
	d.out.post(c, what)
	_ = d.flush() // an error has ended the device, and c with it
}

// flush sends what waits in the outbox, as far as the guest has room.
func (d *Device) flush() error {
	q := d.queues[queueRX]
	if d.out.empty() || !q.Lock() {
		return nil
	}
	_, err := d.flushLocked(q)
	q.Unlock()
	if err != nil {
		d.fail(err)
	}
	return err
}

// flushLocked is flush with q locked. It reports whether all has gone.
func (d *Device) flushLocked(q *vhostuser.Queue) (bool, error) {
	for range maxStreams + maxResets {
		if d.out.empty() {
			return true, nil
		}
		chain, err := q.Next()
		if err != nil || chain == nil {
			return false, err
		}
		h := d.out.take()
		q.Done(chain, put(chain.Writable, &h, nil))
	}
	return false, nil
}

// put writes a packet into a buffer of the guest's and returns its length, 0 if
// the buffer is too small even for the header.
func put(dst vhostuser.Segments, h *header, payload []byte) uint32 {
	var b [headerSize]byte
	h.encode(&b)
	if dst.CopyIn(b[:], 0) < headerSize {
		return 0
	}
	return headerSize + uint32(dst.CopyIn(payload, headerSize))
}

// send puts data of c's into the guest's buffers, as far as there are any, and
// returns how much. c's credit suffices for p.
func (d *Device) send(c *Conn, p []byte) (n int, err error) {
	q := d.queues[queueRX]
	if !q.Lock() {
		return 0, nil
	}
	n, err = d.sendLocked(q, c, p)
	q.Unlock()
	if err != nil {
		d.fail(err)
	}
	return n, err
}

func (d *Device) sendLocked(q *vhostuser.Queue, c *Conn, p []byte) (n int, err error) {
	if all, err := d.flushLocked(q); !all || err != nil {
		return 0, err
	}
	h := c.header(opRW)
	// Bounded by the ring's size, for a guest may offer buffers without room.
	for range batch {
		if n == len(p) {
			break
		}
		chain, err := q.Next()
		if err != nil || chain == nil {
			return n, err
		}
		room := chain.Writable.Len()
		if room <= headerSize {
			q.Done(chain, 0)
			continue
		}
		part := p[n:]
		if uint64(len(part)) > room-headerSize {
			part = part[:room-headerSize]
		}
		h.Len = uint32(len(part))
		q.Done(chain, put(chain.Writable, &h, part))
		n += len(part)
	}
	return n, nil
}
