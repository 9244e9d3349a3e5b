package usernet

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// closeWriter is a connection whose one direction can be ended.
type closeWriter interface {
	net.Conn
	CloseWrite() error
}

// relay copies between two connections until both directions have ended, each at
// its own time, or one has failed. It closes neither.
func relay(a, b closeWriter) {
	var wg sync.WaitGroup
	wg.Go(func() { pump(a, b) })
	wg.Go(func() { pump(b, a) })
	wg.Wait()
}

// pumpSize is a compromise: enough to make system calls few, little enough
// for a thousand connections.
const pumpSize = 32 << 10

var pumpBuffers = sync.Pool{New: func() any { return new([pumpSize]byte) }}

// pump copies from src to dst and ends dst's input after the last byte. If one of
// them has failed, both are over: whoever waits for the other direction must not
// wait for ever.
func pump(dst, src closeWriter) {
	buf := pumpBuffers.Get().(*[pumpSize]byte)
	defer pumpBuffers.Put(buf)
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
	if err == nil {
		err = dst.CloseWrite()
		if errors.Is(err, syscall.ENOTCONN) {
			err = nil // it has ended by itself
		}
	}
	if err != nil {
		reset(dst)
		reset(src)
	}
}

// reset ends a connection so that its peer learns that it was not in order.
func reset(c net.Conn) {
	switch c := c.(type) {
	case *net.TCPConn:
		_ = c.SetLinger(0)
		_ = c.Close()
	case *guestConn:
		c.ep.Abort()
	default:
		_ = c.Close()
	}
}
