// Package accept has the loop of servers that give up only when they are closed.
package accept

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// pause is how long clients wait when one could not be accepted: out of file
// descriptors, for instance.
const pause = 100 * time.Millisecond

// TCP calls serve, which must not wait, with each connection that l accepts, until l is
// closed or ctx has ended. It closes l.
func TCP(ctx context.Context, l net.Listener, serve func(*net.TCPConn)) {
	All(ctx, l, func(c net.Conn) { serve(c.(*net.TCPConn)) })
}

// All is TCP for connections of any kind.
func All(ctx context.Context, l net.Listener, serve func(net.Conn)) {
	defer l.Close()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			continue
		}
		serve(c)
	}
}

// Bounded begins to call serve with each connection that l accepts, in goroutines of wg's, as
// many at a time as slots has room for; there is none for the others, which are closed. It
// closes each connection when serve returns, and l as All does.
func Bounded(ctx context.Context, wg *sync.WaitGroup, l net.Listener, slots chan struct{}, serve func(net.Conn)) {
	wg.Go(func() {
		All(ctx, l, func(c net.Conn) {
			select {
			case slots <- struct{}{}:
				wg.Go(func() {
					defer func() { <-slots }()
					defer func() { _ = c.Close() }()
					serve(c)
				})
			default:
				_ = c.Close()
			}
		})
	})
}
