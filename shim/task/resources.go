package task

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/shim/machine"
	"github.com/applevm/applevm/shim/plan"
)

const (
	// metricsType is the name by which containerd's clients know the statistics of
	// cgroup v2.
	metricsType = "io.containerd.cgroups.v2.Metrics"
	// resourcesSuffix ends the type URL of an OCI LinuxResources.
	resourcesSuffix = "opencontainers/runtime-spec/1/LinuxResources"
)

// stats asks the guest what the container uses.
func (c *container) stats(ctx context.Context) (*anypb.Any, error) {
	if c.machineEnded() {
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("container %s: its machine has ended", c.id))
	}
	var got *anypb.Any
	err := c.call(ctx, callTimeout, func(ctx context.Context, t taskapi.TTRPCTaskService) error {
		resp, err := t.Stats(ctx, &taskapi.StatsRequest{ID: c.id})
		got = resp.GetStats()
		return err
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	usable, network := c.size.Usable(), c.network
	c.mu.Unlock()
	m, err := metrics(got, uint64(usable))
	if err != nil {
		return nil, errdefs.ErrInternal.WithMessage(fmt.Sprintf("container %s: the guest's statistics: %v", c.id, err))
	}
	if network != nil {
		n := network.Counters()
		m.Network = []*stats.NetworkStat{{
			Name: plan.InterfaceName, RxBytes: n.ReceivedBytes, RxPackets: n.ReceivedFrames, TxBytes: n.SentBytes, TxPackets: n.SentFrames,
		}}
	}
	b, err := proto.Marshal(m)
	return &anypb.Any{TypeUrl: metricsType, Value: b}, err
}

// metrics checks what a guest has said. Clients take for granted that the parts
// exist and that the numbers can be written as JSON. A container without a limit
// of its own is limited by its machine, to usable bytes.
func metrics(a *anypb.Any, usable uint64) (*stats.Metrics, error) {
	if len(a.GetValue()) > api.MaxStats {
		return nil, fmt.Errorf("%d bytes, more than %d", len(a.GetValue()), api.MaxStats)
	}
	if name := a.GetTypeUrl()[strings.LastIndexByte(a.GetTypeUrl(), '/')+1:]; name != metricsType {
		return nil, fmt.Errorf("their type is %q", machine.Text(name))
	}
	m := &stats.Metrics{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(a.GetValue(), m); err != nil {
		return nil, fmt.Errorf("they cannot be decoded: %s", machine.Text(err.Error()))
	}
	if m.Pids == nil {
		m.Pids = &stats.PidsStat{}
	}
	if m.CPU == nil {
		m.CPU = &stats.CPUStat{}
	}
	if m.Memory == nil {
		m.Memory = &stats.MemoryStat{}
	}
	if m.Io == nil {
		m.Io = &stats.IOStat{}
	}
	if usable > 0 {
		m.Memory.UsageLimit = min(m.Memory.UsageLimit, usable)
	}
	for _, p := range []*stats.PSIStats{m.CPU.PSI, m.Memory.PSI, m.Io.PSI} {
		finite(p.GetSome())
		finite(p.GetFull())
	}
	for _, list := range [][]*stats.RdmaEntry{m.GetRdma().GetCurrent(), m.GetRdma().GetLimit()} {
		for _, e := range list {
			e.Device = machine.Text(e.Device)
		}
	}
	for _, h := range m.Hugetlb {
		h.Pagesize = machine.Text(h.Pagesize)
	}
	for _, n := range m.Network {
		n.Name = machine.Text(n.Name)
	}
	return m, nil
}

// finite replaces what JSON has no number for.
func finite(p *stats.PSIData) {
	if p == nil {
		return
	}
	for _, f := range []*float64{&p.Avg10, &p.Avg60, &p.Avg300} {
		if math.IsNaN(*f) || math.IsInf(*f, 0) {
			*f = 0
		}
	}
}

// update changes the container's limits.
func (c *container) update(ctx context.Context, a *anypb.Any) error {
	if !strings.HasSuffix(a.GetTypeUrl(), resourcesSuffix) {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("container %s: resources of type %q cannot be applied: use an OCI LinuxResources", c.id, a.GetTypeUrl()))
	}
	end, err := c.updating.takeWithin(ctx, callTimeout, "update")
	if err != nil {
		return fmt.Errorf("update of container %s: %w", c.id, err)
	}
	c.mu.Lock()
	size, limits := c.size, c.limits
	c.mu.Unlock()
	b, limits, warnings, err := plan.Update(a.GetValue(), size, limits)
	if err != nil {
		end()
		return fmt.Errorf("update of container %s: %w", c.id, err)
	}
	for _, w := range warnings {
		log.G(c.ctx).Warn(w)
	}
	err = c.callThrough(ctx, callTimeout, func(ctx context.Context, t taskapi.TTRPCTaskService) error {
		_, err := t.Update(ctx, &taskapi.UpdateTaskRequest{ID: c.id, Resources: &anypb.Any{TypeUrl: a.GetTypeUrl(), Value: b}})
		return err
	}, func(err error, _ bool) {
		defer end()
		if err == nil {
			c.mu.Lock()
			c.limits = limits
			c.mu.Unlock()
		}
	})
	if err != nil && !errdefs.IsUnavailable(err) { // which names the container
		err = fmt.Errorf("update of container %s: %w", c.id, err)
	}
	return err
}

// Bounds on the events that a guest can cause.
const (
	// oomBurst is how many at a time are published of those that came together.
	oomBurst = 8
	// oomPause is the least time between two answers of the guest.
	oomPause = 100 * time.Millisecond
)

// watchMemory publishes when the container runs out of memory, until its machine
// ends.
func (c *container) watchMemory() {
	var after uint64
	for {
		var e *guestv1.WaitEventsResponse
		err := c.machine.Call(c.ctx, 0, func(ctx context.Context) (err error) {
			e, err = c.machine.Guest().WaitEvents(ctx, &guestv1.WaitEventsRequest{After: after})
			return err
		})
		if err != nil {
			if !c.machineEnded() {
				log.G(c.ctx).WithError(err).Warn("the guest does not tell any more when memory runs out")
			}
			return
		}
		after = e.GetSequence()
		c.noteMemory(e)
		select {
		case <-time.After(oomPause):
		case <-c.machine.Done():
			return
		}
	}
}

// lookAtMemory asks at once: a process that was killed for its memory has its
// reason published before its end.
func (c *container) lookAtMemory() {
	var e *guestv1.WaitEventsResponse
	err := c.machine.Call(c.ctx, callTimeout, func(ctx context.Context) (err error) {
		e, err = c.machine.Guest().WaitEvents(ctx, &guestv1.WaitEventsRequest{NoWait: true})
		return err
	})
	if err == nil {
		c.noteMemory(e)
	}
}

// noteMemory publishes what is new in an answer of the guest.
func (c *container) noteMemory(e *guestv1.WaitEventsResponse) {
	for _, o := range e.GetOutOfMemory()[:min(len(e.GetOutOfMemory()), api.MaxEvents)] {
		if o.GetContainerId() != c.id {
			continue
		}
		c.mu.Lock()
		seen := c.outOfMemory
		c.outOfMemory = max(seen, o.GetTimes())
		size := c.size
		c.mu.Unlock()
		if o.GetTimes() <= seen {
			return
		}
		if o.GetMachine() {
			log.G(c.ctx).Warnf("the machine's %d MiB of memory are used up, and the kernel has killed a process of the container: "+
				"give it more with --memory or annotation %s", size.Memory>>20, plan.AnnotationMemory)
		}
		for range min(o.GetTimes()-seen, oomBurst) {
			c.s.events.send(&apievents.TaskOOM{ContainerID: c.id})
		}
		return
	}
}
