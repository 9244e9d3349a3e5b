package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Device is a virtio device behind a Server.
type Device interface {
	// Features are the device's own feature bits; the ring's are added to them.
	Features() uint64
	// Queues are the device's virtqueues, in order. The Server starts and
	// stops them; the device uses them between Queue.Lock and Unlock.
	Queues() []*Queue
	// HandleQueue is called when queue i has started and when the guest has
	// kicked it, never twice at once for the same queue. It works off what is
	// there and returns. The front-end, which may be about to stop the queue, waits
	// for it, but not for long once it is gone itself. An error is reported and ends
	// the queue.
	HandleQueue(i int) error
	// Config is the device's configuration space; nil leaves it to the front-end.
	Config() []byte
}

// Server serves one Device to one front-end.
type Server struct {
	conn *net.UnixConn
	dev  Device

	features, protocol uint64
	mem                *Memory
	rings              []*ring
	released           bool // the front-end is gone

	attached     chan struct{}
	attachedOnce sync.Once
	report       func(error)
}

// ring is what the front-end has told about a queue.
type ring struct {
	queue     *Queue
	num       uint16
	addr      *vringAddr
	base      uint16
	kick      *os.File
	call, err *eventfd
	enabled   bool
	done      chan struct{} // of the goroutine that serves the kicks; nil if stopped
}

// NewServer returns a server for dev on conn, which it owns from now on. Faults
// of the guest that end a queue are given to report, which must not block.
func NewServer(conn *net.UnixConn, dev Device, report func(error)) *Server {
	s := &Server{conn: conn, dev: dev, mem: &Memory{}, attached: make(chan struct{}), report: report}
	for _, q := range dev.Queues() {
		s.rings = append(s.rings, &ring{queue: q})
	}
	return s
}

// Attached is closed when the front-end has read the device's configuration:
// the VMM has then made the device.
func (s *Server) Attached() <-chan struct{} { return s.attached }

// Close ends Serve, which does not wait for the answers to deferred buffers then.
func (s *Server) Close() error {
	err := s.conn.Close()
	for _, q := range s.dev.Queues() {
		q.abandon()
	}
	return err
}

// Serve answers the front-end until it closes the connection, which is no
// error, or breaks the protocol. All queues are stopped and all memory is
// unmapped when it returns.
func (s *Server) Serve() error {
	defer s.release()
	buf := make([]byte, headerSize+maxPayload)
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	for {
		h, payload, fds, err := s.read(buf, oob)
		if err != nil {
			closeAll(fds)
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
				return nil
			}
			return err
		}
		reply, err := s.handle(h.Request, payload, &fds)
		closeAll(fds) // those that nobody took
		if err := s.answer(h, reply, err); err != nil {
			return err
		}
	}
}

// read takes one message from the socket. The descriptors come with its first byte.
func (s *Server) read(buf, oob []byte) (h header, payload []byte, fds []int, err error) {
	n, oobn, flags, _, err := s.conn.ReadMsgUnix(buf[:headerSize], oob)
	if oobn > 0 {
		fds = parseRights(oob[:oobn])
	}
	switch {
	case err != nil:
		return h, nil, fds, err
	case n == 0 && oobn == 0:
		return h, nil, fds, io.EOF
	case flags&unix.MSG_CTRUNC != 0:
		return h, nil, fds, fmt.Errorf("%w: too many descriptors", errMessage)
	}
	if _, err := io.ReadFull(s.conn, buf[n:headerSize]); err != nil {
		return h, nil, fds, err
	}
	if h, err = parseHeader(buf[:headerSize]); err != nil {
		return h, nil, fds, err
	}
	payload = buf[headerSize : headerSize+int(h.Size)]
	_, err = io.ReadFull(s.conn, payload)
	return h, payload, fds, err
}

func parseRights(oob []byte) (fds []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// answer sends the reply that h's request has by itself, else the
// acknowledgement that the front-end asked for. A request that failed and
// cannot be answered ends the connection.
func (s *Server) answer(h header, reply []byte, failed error) error {
	switch {
	case reply != nil:
	case h.Flags&flagNeedReply != 0 && s.protocol&ProtocolFeatureReplyAck != 0:
		var code uint64
		if failed != nil {
			code = 1
			s.report(failed)
		}
		reply = u64(code)
	default:
		return failed
	}
	_, err := s.conn.Write(appendReply(nil, h.Request, reply))
	return err
}

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// handle executes one request. It takes from fds those that it keeps. A reply
// that is not nil goes back.
func (s *Server) handle(req Request, p []byte, fds *[]int) (reply []byte, err error) {
	switch req {
	case GetFeatures:
		return u64(s.offered()), nil
	case SetFeatures:
		v, err := parseU64(p)
		if err == nil && v&^s.offered() != 0 {
			err = fmt.Errorf("%w: features %#x were not offered", errMessage, v&^s.offered())
		}
		if err == nil {
			s.features = v
		}
		return nil, err
	case GetProtocolFeatures:
		return u64(s.offeredProtocol()), nil
	case SetProtocolFeatures:
		v, err := parseU64(p)
		s.protocol = v & s.offeredProtocol()
		return nil, err
	case SetOwner:
		return nil, nil
	case ResetOwner: // deprecated; disables all rings (vhost-user.rst)
		for _, r := range s.rings {
			s.stop(r)
		}
		return nil, nil
	case GetQueueNum:
		return u64(uint64(len(s.rings))), nil
	case SetMemTable:
		return nil, s.setMemTable(p, *fds)
	case GetConfig:
		r, err := parseConfigRequest(p)
		if err != nil {
			return nil, err
		}
		s.attachedOnce.Do(func() { close(s.attached) })
		return configReply(r, s.dev.Config()), nil
	case SetConfig: // the configuration is read-only
		return nil, nil
	case SetVringNum, SetVringBase, SetVringEnable, GetVringBase:
		return s.handleState(req, p)
	case SetVringAddr:
		a, err := parseVringAddr(p)
		if err != nil {
			return nil, err
		}
		r, err := s.ring(uint64(a.Index))
		if err != nil {
			return nil, err
		}
		r.addr = &a
		return nil, s.update(r)
	case SetVringKick, SetVringCall, SetVringErr:
		return nil, s.handleFD(req, p, fds)
	}
	return nil, fmt.Errorf("%w: unknown request %d", errMessage, req)
}

func (s *Server) offeredProtocol() uint64 {
	f := uint64(ProtocolFeatureMQ | ProtocolFeatureReplyAck)
	if s.dev.Config() != nil {
		f |= ProtocolFeatureConfig
	}
	return f
}

func (s *Server) offered() uint64 {
	return s.dev.Features() | FeatureVersion1 | FeatureIndirectDesc | FeatureEventIdx | FeatureProtocolFeatures
}

func (s *Server) ring(i uint64) (*ring, error) {
	if i >= uint64(len(s.rings)) {
		return nil, fmt.Errorf("%w: ring %d of %d", errMessage, i, len(s.rings))
	}
	return s.rings[i], nil
}

func (s *Server) handleState(req Request, p []byte) ([]byte, error) {
	st, err := parseVringState(p)
	if err != nil {
		return nil, err
	}
	r, err := s.ring(uint64(st.Index))
	if err != nil {
		return nil, err
	}
	switch req {
	case SetVringNum:
		if st.Num == 0 || st.Num > maxQueueSize {
			return nil, fmt.Errorf("%w: queue of %d entries", errMessage, st.Num)
		}
		r.num = uint16(st.Num)
	case SetVringBase:
		r.base = uint16(st.Num)
	case SetVringEnable:
		r.enabled = st.Num == 1
		return nil, s.update(r)
	case GetVringBase:
		s.stop(r)
		reply := binary.LittleEndian.AppendUint32(nil, st.Index)
		return binary.LittleEndian.AppendUint32(reply, uint32(r.base)), nil
	}
	return nil, nil
}

// handleFD takes a ring's event file.
func (s *Server) handleFD(req Request, p []byte, fds *[]int) error {
	v, err := parseU64(p)
	if err != nil {
		return err
	}
	r, err := s.ring(v & vringIndexMask)
	if err != nil {
		return err
	}
	want := 1
	if v&vringNoFD != 0 {
		want = 0
	}
	if len(*fds) != want {
		return fmt.Errorf("%w %d: %d descriptors", errMessage, req, len(*fds))
	}
	fd := -1
	if want == 1 {
		fd, *fds = (*fds)[0], nil
	}
	switch req {
	case SetVringCall:
		r.call.close()
		r.call = newEventfd(fd)
		if r.done != nil {
			r.queue.setNotify(r.call.signal)
		}
	case SetVringErr:
		r.err.close()
		r.err = newEventfd(fd)
	case SetVringKick:
		s.stop(r)
		if fd < 0 {
			return fmt.Errorf("%w: a ring without a kick file is not supported", errMessage)
		}
		// QEMU shares the file's flags. It makes the file non-blocking and must
		// find it so: never clear the flag. os.NewFile only reads it, and
		// (*os.File).Fd must not be called.
		if err := unix.SetNonblock(fd, true); err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("kick file: %w", err)
		}
		kick := os.NewFile(uintptr(fd), "kick")
		// pause needs deadlines; a file that cannot be polled has none.
		if err := kick.SetReadDeadline(never); err != nil {
			_ = kick.Close()
			return fmt.Errorf("%w: kick file: %w", errMessage, err)
		}
		r.kick = kick
		return s.update(r)
	}
	return nil
}

// update starts r if all that it needs is known, and stops it if it must not run.
func (s *Server) update(r *ring) error {
	// Without the protocol features a ring is enabled from the start.
	enabled := r.enabled || s.features&FeatureProtocolFeatures == 0
	if !enabled || r.addr == nil || r.num == 0 || r.kick == nil {
		s.pause(r)
		return nil
	}
	if r.done != nil {
		return nil
	}
	if err := r.queue.start(s.mem, r.num, *r.addr, r.base, s.features&FeatureEventIdx != 0, r.call.signal); err != nil {
		return err
	}
	r.done = make(chan struct{})
	go s.serveKicks(r, r.kick, r.done)
	return nil
}

// serveKicks hands the kicks to the device until the file is closed or the
// deadline that pause sets has come.
func (s *Server) serveKicks(r *ring, kick *os.File, done chan struct{}) {
	defer close(done)
	i := s.index(r)
	var count [8]byte
	for {
		if err := s.dev.HandleQueue(i); err != nil {
			s.report(fmt.Errorf("queue %d: %w", i, err))
			r.err.signal()
			return
		}
		if _, err := kick.Read(count[:]); err != nil {
			return
		}
	}
}

func (s *Server) index(r *ring) int {
	for i := range s.rings {
		if s.rings[i] == r {
			return i
		}
	}
	return -1
}

// pause takes r's queue away from the device and ends its goroutine.
func (s *Server) pause(r *ring) {
	if r.done == nil {
		return
	}
	r.base = r.queue.stop()
	_ = r.kick.SetReadDeadline(past)
	select {
	case <-r.done:
	case <-s.gone(): // the device works on by itself; of the queue it gets nothing any more
	}
	_ = r.kick.SetReadDeadline(never)
	r.done = nil
}

// stop is what GET_VRING_BASE asks for: the ring ends, its kick file is given up.
func (s *Server) stop(r *ring) {
	s.pause(r)
	if r.kick != nil {
		_ = r.kick.Close()
		r.kick = nil
	}
}

// setMemTable replaces the guest's memory under the running queues.
func (s *Server) setMemTable(p []byte, fds []int) error {
	infos, err := parseMemTable(p, len(fds))
	if err != nil {
		return err
	}
	mem, err := mapMemory(infos, fds)
	if err != nil {
		return err
	}
	old := s.mem
	s.mem = mem
	var errs []error
	for _, r := range s.rings {
		if r.done != nil {
			errs = append(errs, r.queue.move(mem, r.num, *r.addr))
		}
	}
	return errors.Join(append(errs, old.Close())...)
}

// releaseTimeout bounds the wait for what a device is doing when the front-end is gone.
const releaseTimeout = time.Second

// gone returns what is ready a while after the front-end has gone.
func (s *Server) gone() <-chan time.Time {
	if !s.released {
		return nil
	}
	return time.After(releaseTimeout)
}

func (s *Server) release() {
	_ = s.conn.Close()
	s.released = true
	for _, r := range s.rings {
		r.queue.abandon() // an answer may take long, and nobody waits for it any more
		s.stop(r)
		r.call.close()
		r.err.close()
	}
	_ = s.mem.Close()
}
