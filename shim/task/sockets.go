package task

import (
	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/shim/plan"
	"github.com/applevm/applevm/shim/record"
	"github.com/applevm/applevm/shim/sockets"
)

// openSockets makes the container's sockets on the host, and finds those of the host that it
// mounts, before there is a machine.
func (c *container) openSockets(p *plan.Plan, maxConnections int) error {
	if len(p.PublishedSockets) > 0 {
		if err := c.save(func(r *record.Record) {
			for _, s := range p.PublishedSockets {
				r.Sockets = append(r.Sockets, s.Host)
			}
		}); err != nil {
			return err
		}
		published, err := sockets.Publish(c.ctx, c.id, p.PublishedSockets, maxConnections)
		if err != nil {
			return errdefs.ErrFailedPrecondition.WithMessage(err.Error())
		}
		c.mu.Lock()
		c.published = published
		c.mu.Unlock()
	}
	if len(p.Sockets) == 0 {
		return nil
	}
	shared, err := sockets.Share(c.ctx, p.Sockets, maxConnections)
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	c.mu.Lock()
	c.shared = shared
	c.mu.Unlock()
	return nil
}

// serveSockets connects them with the machine.
func (c *container) serveSockets() error {
	c.mu.Lock()
	shared, published, m := c.shared, c.published, c.machine
	c.mu.Unlock()
	if published != nil {
		published.Serve(m.Dial)
	}
	if shared == nil {
		return nil
	}
	l, err := m.Listen(api.SocketPort)
	if err != nil {
		return err
	}
	shared.Serve(l)
	return nil
}
