package task

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/network/usernet"
	"github.com/applevm/applevm/shim/hostports"
	"github.com/applevm/applevm/shim/plan"
	"github.com/applevm/applevm/vmm"
)

// connect starts the container's network and puts its cable into the machine's
// configuration. unplug closes this process's copy of the machine's end.
// destroy ends the network.
func (c *container) connect(m *vmm.Config, n plan.Network) (unplug func(), err error) {
	if !n.User {
		return func() {}, nil
	}
	ours, theirs, err := usernet.Pair()
	if err != nil {
		return nil, err
	}
	unplug = func() { _ = theirs.Close() }
	nw, err := usernet.New(n.Config, ours)
	if err != nil {
		unplug()
		return nil, err
	}
	c.mu.Lock()
	c.network = nw
	c.mu.Unlock()
	for _, p := range n.Publish {
		if err := nw.Publish(p); err != nil {
			unplug()
			return nil, errdefs.ErrFailedPrecondition.WithMessage(err.Error())
		}
	}
	m.NICs[0].File = theirs
	return unplug, nil
}

// listenersPause is how soon the guest is asked again: a container that opens and
// closes ports all the time does not keep the host busy.
const listenersPause = 50 * time.Millisecond

// followPorts makes what the container listens on appear on the host's loopback,
// until its machine ends.
func (c *container) followPorts(maxConnections int) {
	ports := hostports.New(c.ctx, hostports.Options{Dial: c.machine.Dial, Network: c.network, MaxConnections: maxConnections})
	defer ports.Close()
	for known := ""; ; {
		var r *guestv1.WaitListenersResponse
		err := c.machine.Call(c.ctx, 0, func(ctx context.Context) (err error) {
			r, err = c.machine.Guest().WaitListeners(ctx, &guestv1.WaitListenersRequest{Known: known})
			return err
		})
		if err != nil {
			if !c.machineEnded() {
				log.G(c.ctx).WithError(err).Warn("the guest does not tell any more what the container listens on")
			}
			return
		}
		known = r.GetDigest()
		ports.Set(r.GetListeners()[:min(len(r.GetListeners()), api.MaxListeners)])
		select {
		case <-time.After(listenersPause):
		case <-c.machine.Done():
			return
		}
	}
}
