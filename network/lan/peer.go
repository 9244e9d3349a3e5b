package lan

import (
	"errors"
	"net"
	"slices"
	"syscall"
	"time"
)

// Bounds of what waits for members that do not take it. A frame that finds no
// room is lost, as it is on a switch.
const (
	// maxFrames is how many frames wait for one member.
	maxFrames = 64
	// maxQueued is how many bytes wait for all together.
	maxQueued = 16 << 20
	// writeTimeout is how long a member may take for one frame.
	writeTimeout = time.Second
	// peerIdle is how long the connection to a member is kept without a frame.
	peerIdle = time.Minute
)

// peer is another member, as far as frames have been sent to it.
type peer struct {
	path   string
	frames chan []byte
	conn   *net.UnixConn // nil until the first frame, and while there is no such member
}

// Send sends a frame to a member. It does not wait: neither for the member nor
// for one that does not exist.
func (p *Port) Send(to int, frame []byte) {
	if to < FirstNumber || to > MaxNumber || to == p.number {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.queued.Load()+int64(len(frame)) > maxQueued {
		return
	}
	q := p.peers[to]
	if q == nil {
		q = &peer{path: socket(p.dir, to), frames: make(chan []byte, maxFrames)}
		p.peers[to] = q
		p.wg.Go(func() { p.serve(to, q) })
	}
	if len(q.frames) < cap(q.frames) { // nobody else puts any in
		p.queued.Add(int64(len(frame)))
		q.frames <- slices.Clone(frame)
	}
}

// serve sends what waits for a member, until there was nothing for a while.
func (p *Port) serve(to int, q *peer) {
	defer func() {
		if q.conn != nil {
			_ = q.conn.Close()
		}
	}()
	idle := time.NewTimer(peerIdle)
	defer idle.Stop()
	for {
		select {
		case frame := <-q.frames:
			p.write(q, frame)
			p.queued.Add(-int64(len(frame)))
			idle.Reset(peerIdle)
		case <-idle.C:
			p.mu.Lock()
			if len(q.frames) == 0 {
				delete(p.peers, to)
				p.mu.Unlock()
				return
			}
			p.mu.Unlock()
			idle.Reset(peerIdle)
		case <-p.ctx.Done():
			return
		}
	}
}

// write sends one frame. A member that has ended since the last one may have a
// successor of the same number.
func (p *Port) write(q *peer, frame []byte) {
	for range 2 {
		if q.conn == nil {
			c, err := dial(q.path)
			if errors.Is(err, syscall.ECONNREFUSED) {
				_ = Clean(p.ctx, p.dir) // it was killed
			}
			if err != nil {
				return
			}
			q.conn = c
		}
		_ = q.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := q.conn.Write(frame)
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ENOTCONN) {
			return // sent, or lost
		}
		_ = q.conn.Close()
		q.conn = nil
	}
}
