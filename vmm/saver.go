package vmm

import "context"

// Saver is a Machine whose state can be saved, and another made that goes on from it
// (Config.Restore). A driver may lack this.
type Saver interface {
	// Save writes the state of a paused machine, its memory included, to the new directory dir
	// (mode 0700), of which nothing is left if it fails. The machine stays paused. What its disks hold
	// is not in it: they must be as they are now when the state is used.
	Save(ctx context.Context, dir string) error
}
