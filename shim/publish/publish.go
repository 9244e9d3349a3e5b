// Package publish hands events to containerd, one attempt at a time. Who calls it
// decides what becomes of an event that was not taken: containerd's pkg/shim has a
// publisher that decides by itself, and drops an event after five attempts.
package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/ttrpcutil"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
)

// answerTimeout is how long containerd may take to answer. One that was only slow
// gets the event a second time, so it is longer than a busy host needs.
const answerTimeout = 10 * time.Second

// ErrRefused is in the error of an event that containerd will never take.
var ErrRefused = errors.New("containerd refuses the event")

// Client sends events to one containerd, over a connection that is made anew when
// containerd was restarted. One call at a time.
type Client struct{ c *ttrpcutil.Client }

// New returns a Client for the ttrpc socket at address, as containerd gives it to
// shims in TTRPC_ADDRESS. Nobody need serve there yet.
func New(address string) (*Client, error) {
	c, err := ttrpcutil.NewClient(address)
	if err != nil {
		return nil, fmt.Errorf("a client for containerd's events at %s: %w", address, err)
	}
	return &Client{c}, nil
}

// Forward sends one event. After nil containerd has it; after ErrRefused another
// attempt is no use; after any other error containerd may have it or not.
func (c *Client) Forward(ctx context.Context, e *types.Envelope) error {
	err := c.forward(ctx, e)
	if errors.Is(err, ttrpc.ErrClosed) {
		// The usual case: containerd has been restarted since the last event.
		if err = c.c.Reconnect(); err == nil {
			err = c.forward(ctx, e)
		}
	}
	if errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

func (c *Client) forward(ctx context.Context, e *types.Envelope) error {
	service, err := c.c.EventsService()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, err = service.Forward(ctx, &eventsapi.ForwardRequest{Envelope: e})
	return err
}

// Close ends the connection.
func (c *Client) Close() error { return c.c.Close() }
