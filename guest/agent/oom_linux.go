package agent

import (
	"context"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/sirupsen/logrus"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// outOfMemory counts, for all containers, how often they were short of memory.
// The kernel counts too, in memory.events, but only processes: a group that dies
// together (memory.oom.group) is one occasion.
type outOfMemory struct {
	mu       sync.Mutex
	sequence uint64
	changed  chan struct{} // closed and replaced with each change
}

// oomCount is a container's, guarded by outOfMemory.mu.
type oomCount struct {
	times, killed, atLimit uint64
	machine                bool
}

// note takes the kernel's counters (Documentation/admin-guide/cgroup-v2.rst,
// memory.events): oom, how often the container was at its limit and nothing
// could be reclaimed, and oom_kill, how many of its processes were killed,
// for whichever reason.
func (o *outOfMemory) note(c *container, oom, oomKill uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := &c.oom
	if oomKill <= n.killed {
		return
	}
	// oom is counted before oom_kill, and may have been seen alone.
	n.machine = oom <= n.atLimit
	n.times, n.killed, n.atLimit = n.times+1, oomKill, oom
	o.sequence++
	close(o.changed)
	o.changed = make(chan struct{})
}

// waitEvents answers at once if something is newer than after or wait is false,
// else when something happens.
func (a *Agent) waitEvents(ctx context.Context, after uint64, wait bool) (*guestv1.WaitEventsResponse, error) {
	for {
		a.oom.mu.Lock()
		sequence, changed := a.oom.sequence, a.oom.changed
		a.oom.mu.Unlock()
		if sequence > after || !wait {
			return a.events(), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (a *Agent) events() *guestv1.WaitEventsResponse {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.oom.mu.Lock()
	defer a.oom.mu.Unlock()
	r := &guestv1.WaitEventsResponse{Sequence: a.oom.sequence}
	for _, c := range a.containers {
		if n := c.oom; n.times > 0 && len(r.OutOfMemory) < api.MaxEvents {
			r.OutOfMemory = append(r.OutOfMemory, &guestv1.OutOfMemory{
				ContainerId: c.id, Times: n.times, Killed: n.killed, Machine: n.machine,
			})
		}
	}
	return r
}

// watchMemory notes, until the container's last process has ended, when the
// kernel kills one for want of memory.
func (c *container) watchMemory() {
	cg, err := c.cgroup()
	if err != nil {
		logrus.Errorf("container %s: watch its memory: %v", c.id, err)
		return
	}
	events, failed := cg.EventChan()
	go func() {
		for {
			select {
			case e := <-events:
				c.agent.oom.note(c, e.OOM, e.OOMKill)
			case err := <-failed: // closed with the cgroup's last process
				if err != nil {
					logrus.Errorf("container %s: watch its memory: %v", c.id, err)
				}
				return
			}
		}
	}()
}

// noteMemory looks for what watchMemory may not have seen yet: it is called
// before the end of a process is told, so that the reason comes before the end.
func (c *container) noteMemory() {
	cg, err := c.cgroup()
	if err != nil {
		return
	}
	m, err := cg.StatFiltered(cgroup2.StatMemoryEvents)
	if err != nil {
		logrus.Errorf("container %s: read its memory.events: %v", c.id, err)
		return
	}
	if e := m.GetMemoryEvents(); e != nil {
		c.agent.oom.note(c, e.Oom, e.OomKill)
	}
}
