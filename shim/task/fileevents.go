package task

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/log"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/vmm"
)

// raiseTimeout bounds the wait for the guest to raise events. Each takes it well under a
// millisecond, or several if it is emulated.
const raiseTimeout = 10 * time.Second

// watchesPause is how soon the guest is asked again what is watched: one that always has
// something new does not keep the host busy.
const watchesPause = 100 * time.Millisecond

// followShares has processes that watch files of the host's hear what the host does to them,
// until the machine ends.
func (c *container) followShares() {
	w := c.machine.ShareWatcher()
	if w == nil {
		return
	}
	ctx := c.machineContext()
	go c.raiseFileEvents(ctx, w)
	warned := false
	warn := func(err error) {
		if !warned && !c.machineEnded() {
			warned = true
			log.G(ctx).WithError(err).Warn("processes of the container do not hear of all changes that the host makes to files")
		}
	}
	for known := ""; ; {
		var r *guestv1.WaitWatchesResponse
		err := c.machine.Call(ctx, 0, func(ctx context.Context) (err error) {
			r, err = c.machine.Guest().WaitWatches(ctx, &guestv1.WaitWatchesRequest{ContainerId: c.id, Known: known, Paths: w.WatchesPaths()})
			return err
		})
		if err != nil {
			if !c.machineEnded() {
				log.G(ctx).WithError(err).Warn("the guest does not tell any more which files its processes watch: they do not hear of the host's changes")
			}
			return
		}
		known = r.GetDigest()
		files, n := map[string]vmm.WatchedFiles{}, 0
		for _, s := range r.GetShares() {
			if n += len(s.GetFiles()) + len(s.GetPaths()); n > api.MaxWatches {
				break
			}
			f := vmm.WatchedFiles{Nodes: s.GetFiles()}
			for _, p := range s.GetPaths() {
				f.Paths = append(f.Paths, string(p))
			}
			files[s.GetShare()] = f
		}
		if r.GetCut() || n > api.MaxWatches {
			warn(fmt.Errorf("they watch more than %d files", api.MaxWatches))
		}
		if err := w.WatchShares(files); err != nil {
			warn(err)
		}
		select {
		case <-time.After(watchesPause):
		case <-ctx.Done():
			return
		}
	}
}

// raiseFileEvents tells the guest of changes.
func (c *container) raiseFileEvents(ctx context.Context, w vmm.ShareWatcher) {
	for {
		changes, err := w.ShareChanges(ctx)
		if err != nil {
			return
		}
		if changes.Lost > 0 {
			log.G(ctx).Warnf("processes of the container do not hear of %d changes of files: there were too many at once", changes.Lost)
		}
		for part := range slices.Chunk(changes.Changes, api.MaxFileEvents) {
			req := &guestv1.RaiseFileEventsRequest{Share: changes.Tag, Group: changes.Group}
			for _, e := range part {
				req.Events = append(req.Events, &guestv1.FileEvent{
					Kind: guestv1.FileEvent_Kind(e.What), Node: e.File, Name: []byte(e.Name), Type: e.Type, Attributes: e.Attributes,
				})
			}
			c.raise(ctx, req, len(part))
		}
		for part := range slices.Chunk(changes.Paths, api.MaxFileEvents) {
			req := &guestv1.RaiseFileEventsRequest{Share: changes.Tag}
			for _, p := range part {
				req.Changed = append(req.Changed, []byte(p))
			}
			c.raise(ctx, req, len(part))
		}
	}
}

// raise tells the guest of n changes.
func (c *container) raise(ctx context.Context, req *guestv1.RaiseFileEventsRequest, n int) {
	req.ContainerId = c.id
	err := c.machine.Call(ctx, raiseTimeout, func(ctx context.Context) error {
		_, err := c.machine.Guest().RaiseFileEvents(ctx, req)
		return err
	})
	if err != nil && !c.machineEnded() {
		log.G(ctx).WithError(err).Warnf("processes of the container do not hear of %d changes of files", n)
	}
}
