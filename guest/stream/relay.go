package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

// A Duplex is a connection of which each direction ends by itself: TCP's, or a unix socket's.
type Duplex interface {
	net.Conn
	CloseWrite() error
}

// Relay carries a connection in the frames of conn, both ways, until each
// direction has ended, at its own time. If one fails or ctx ends, both are over: duplex
// is reset if it is TCP's, so that its peer learns that this was not in order, and conn is closed. r
// and w are conn's: what the two ends said to each other before went through them. It
// closes neither connection at a good end.
func Relay(ctx context.Context, conn net.Conn, r *Reader, w *Writer, duplex Duplex) {
	fail := func() {
		if tcp, ok := duplex.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = duplex.Close()
		_ = conn.Close()
	}
	defer context.AfterFunc(ctx, fail)()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.sendAll(duplex); err != nil {
			fail()
		}
	})
	wg.Go(func() {
		if _, err := r.WriteTo(duplex); err != nil || duplex.CloseWrite() != nil {
			fail()
		}
	})
	wg.Wait()
}

// sendAll sends what src has, in frames as it comes, and its end.
func (w *Writer) sendAll(src io.Reader) error {
	for {
		n, err := src.Read(w.Buffer())
		if serr := w.Send(n); serr != nil {
			return serr
		}
		if errors.Is(err, io.EOF) {
			return w.Close()
		}
		if err != nil {
			return err
		}
	}
}
