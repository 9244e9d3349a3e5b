package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/shim/hooks"
	"github.com/applevm/applevm/shim/plan"
	"github.com/applevm/applevm/shim/record"
)

// hooksTimeout bounds the poststop hooks: containerd gives the whole command 5
// seconds (io.containerd.timeout.shim.cleanup).
const hooksTimeout = 3 * time.Second

// Stop removes what a dead or lost shim has left: the shim itself if it still
// runs, with it its machine, the machine's directory, the socket, and what the
// poststop hooks undo. Whatever fails, it goes on, and reports all failures.
func (Shim) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	status := shim.StopStatus{ExitStatus: 128 + int(syscall.SIGKILL), ExitedAt: time.Now()}
	bundle, err := bundleOf(ctx)
	if err != nil {
		return status, err
	}
	rec, err := record.Clean(ctx, bundle)
	status.Pid = rec.PID
	errs := []error{err}
	if rec.Hooks {
		ctx, cancel := context.WithTimeout(ctx, hooksTimeout)
		defer cancel()
		errs = append(errs, poststop(ctx, bundle, id, rec.PID))
	}
	if addr, err := record.LoadAddress(bundle); err == nil {
		if err := shim.RemoveSocket(addr); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// containerd drops the container's record only if this command succeeds.
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintf(os.Stderr, "clean up after the shim of %s: %v\n", id, err)
	}
	return status, nil
}

func poststop(ctx context.Context, bundle, id string, pid int) error {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return err
	}
	list, annotations, err := plan.Hooks(b)
	if err != nil {
		return err
	}
	return hooks.RunAll(ctx, "poststop", list.Poststop, specs.State{
		Version: specs.Version, ID: id, Status: specs.StateStopped, Pid: pid, Bundle: bundle, Annotations: annotations,
	})
}
