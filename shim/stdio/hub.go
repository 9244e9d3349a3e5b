// Package stdio carries a process's stdin, stdout and stderr between the guest
// and what containerd names on the host: FIFOs, files, and logging programs.
//
// The guest's end of each stream is a vsock connection that the agent opens
// (package guest/stream). A Hub takes those connections and gives each to the
// stream that it belongs to.
package stdio

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/applevm/applevm/guest/stream"
)

const (
	// tokenTimeout is how long a connection may take to say its name.
	tokenTimeout = 10 * time.Second
	// maxUnnamed bounds the connections that have not said their name yet.
	// Everything in the guest can connect; only the agent knows names.
	maxUnnamed = 32
)

// errHubClosed is what streams get whose machine has ended before they began.
var errHubClosed = errors.New("the machine has ended")

// Hub gives the connections that the guest makes to the streams they name.
type Hub struct {
	l       net.Listener
	unnamed chan struct{}

	mu      sync.Mutex
	closed  bool
	waiting map[stream.Token]chan net.Conn
}

// NewHub serves l until Close, or until l itself ends.
func NewHub(l net.Listener) *Hub {
	h := &Hub{l: l, unnamed: make(chan struct{}, maxUnnamed), waiting: map[stream.Token]chan net.Conn{}}
	go h.serve()
	return h
}

// Close ends the listener and all waiting. Connections that were handed out stay.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	for t, ch := range h.waiting {
		close(ch)
		delete(h.waiting, t)
	}
	h.l.Close()
}

// slot is a stream's place in the hub.
type slot struct {
	h     *Hub
	token stream.Token
	ch    chan net.Conn
}

// expect makes a place for the stream that the guest will call t.
func (h *Hub) expect(t stream.Token) *slot {
	s := &slot{h: h, token: t, ch: make(chan net.Conn, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(s.ch)
	} else {
		h.waiting[t] = s.ch
	}
	return s
}

// wait returns the stream's connection.
func (s *slot) wait(ctx context.Context) (net.Conn, error) {
	select {
	case c, ok := <-s.ch:
		if !ok {
			return nil, errHubClosed
		}
		return c, nil
	case <-ctx.Done():
	}
	s.h.mu.Lock()
	delete(s.h.waiting, s.token)
	s.h.mu.Unlock()
	// It may have come in between.
	select {
	case c, ok := <-s.ch:
		if ok {
			c.Close()
		}
	default:
	}
	return nil, context.Cause(ctx)
}

func (h *Hub) serve() {
	defer h.Close()
	for {
		h.unnamed <- struct{}{}
		c, err := h.l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { <-h.unnamed }()
			h.name(c)
		}()
	}
}

// name reads the name of a new connection and hands it over, or closes it.
func (h *Hub) name(c net.Conn) {
	var t stream.Token
	_ = c.SetReadDeadline(time.Now().Add(tokenTimeout))
	if _, err := io.ReadFull(c, t[:]); err != nil {
		c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	h.mu.Lock()
	defer h.mu.Unlock()
	ch, ok := h.waiting[t]
	if !ok {
		c.Close()
		return
	}
	delete(h.waiting, t) // a name is good for one connection
	ch <- c
}
