package task

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/network/lan"
	"github.com/applevm/applevm/network/tapns"
	"github.com/applevm/applevm/network/usernet"
	"github.com/applevm/applevm/shim/hostports"
	"github.com/applevm/applevm/shim/plan"
	"github.com/applevm/applevm/shim/record"
	"github.com/applevm/applevm/vmm"
)

// connect starts the container's network and puts its cables into the machine's
// configuration. unplug closes this process's copies of the machine's ends.
// destroy ends the network.
func (c *container) connect(m *vmm.Config, n plan.Network) (unplug func(), err error) {
	switch {
	case n.User:
		return c.connectUser(m, n)
	case n.CNI > 0:
		ns, err := c.netNS(n)
		if err != nil {
			return nil, errdefs.ErrFailedPrecondition.WithMessage(err.Error())
		}
		c.mu.Lock()
		c.netns = ns
		c.mu.Unlock()
		m.NetNS = ns.NS
		for i, t := range ns.Taps {
			m.NICs[i].File = t
		}
		return ns.CloseTaps, nil
	}
	return func() {}, nil
}

// netNS is the network namespace in which the client connects the container.
func (c *container) netNS(n plan.Network) (*tapns.Namespace, error) {
	if n.NetNS == "" {
		return tapns.New(n.CNI)
	}
	if err := c.save(func(r *record.Record) { r.NetNS = n.NetNS }); err != nil {
		return nil, err
	}
	return tapns.Open(n.NetNS, n.CNI)
}

// join joins a network that containers share. destroy leaves it.
func (c *container) join(ctx context.Context, name string, m lan.Member) (*lan.Port, error) {
	dir, err := record.LANDir(c.bundle, c.s.opts.Namespace, name)
	if err != nil {
		return nil, err
	}
	if err := c.save(func(r *record.Record) { r.LAN = dir }); err != nil {
		return nil, err
	}
	p, err := lan.Join(ctx, dir, m)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.lan = p
	c.mu.Unlock()
	return p, nil
}

// joinNetworks connects the machine to what hooks have set up in its network
// namespace, and returns the guest's interfaces.
func (c *container) joinNetworks(n plan.Network) ([]*guestv1.Interface, error) {
	list, err := c.netns.Join(n.CNI)
	if err != nil {
		return nil, err
	}
	if len(list) < n.CNI {
		log.G(c.ctx).Warnf("the container asks for %d networks, and the hooks have made %d interfaces", n.CNI, len(list))
	}
	return n.Joined(list), nil
}

func (c *container) connectUser(m *vmm.Config, n plan.Network) (unplug func(), err error) {
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
