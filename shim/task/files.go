package task

import (
	"bytes"
	"context"

	"github.com/containerd/log"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/shim/livefiles"
	"github.com/applevm/applevm/shim/plan"
)

// followFiles has the container's copies of the client's files follow those, until its
// machine ends.
func (c *container) followFiles(p *plan.Plan) {
	files, content := map[string][]plan.File{}, map[string][]byte{}
	var paths []string
	for _, f := range p.Files {
		if f.Generated {
			continue
		}
		if len(files[f.Source]) == 0 {
			paths = append(paths, f.Source)
		}
		files[f.Source] = append(files[f.Source], f)
	}
	if len(paths) == 0 {
		return
	}
	for _, f := range p.Container.GetFiles() {
		content[f.GetPath()] = f.GetContent()
	}
	ctx := c.machineContext()
	livefiles.Follow(ctx, paths, func(path string) {
		for _, f := range files[path] {
			b, _, err := p.ReadFile(f)
			if err != nil || bytes.Equal(b, content[f.Destination]) {
				continue // one that is gone stays as it was
			}
			err = c.machine.Call(ctx, 0, func(ctx context.Context) error {
				_, err := c.machine.Guest().SetFile(ctx, &guestv1.SetFileRequest{ContainerId: c.id, Path: f.Destination, Content: b})
				return err
			})
			if err == nil {
				content[f.Destination] = b
			} else if !c.machineEnded() {
				log.G(ctx).WithError(err).Warnf("the container's %s does not follow %s", f.Destination, path)
			}
		}
	})
}
