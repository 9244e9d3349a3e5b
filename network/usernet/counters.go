package usernet

import "sync/atomic"

// Counters say what a guest has sent and received since its network began: as it
// counts itself, with Ethernet headers.
type Counters struct {
	SentBytes, SentFrames, ReceivedBytes, ReceivedFrames uint64
}

// Counters returns what has gone through so far.
func (n *Network) Counters() Counters {
	return Counters{
		SentBytes: n.link.sent.bytes.Load(), SentFrames: n.link.sent.frames.Load(),
		ReceivedBytes: n.link.received.bytes.Load(), ReceivedFrames: n.link.received.frames.Load(),
	}
}

// counter counts frames in one direction.
type counter struct{ bytes, frames atomic.Uint64 }

func (c *counter) add(n int) {
	c.bytes.Add(uint64(n))
	c.frames.Add(1)
}
