package task

import (
	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/network/usernet"
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
