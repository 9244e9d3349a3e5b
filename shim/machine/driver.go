package machine

import (
	"fmt"
	"runtime"

	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/vmm"
)

// NewDriver returns the driver that the configuration asks for.
func NewDriver(cfg config.Config) (vmm.Driver, error) {
	if f, ok := drivers[cfg.Machine.Driver]; ok {
		return f(cfg)
	}
	return nil, errdefs.ErrNotImplemented.WithMessage(
		fmt.Sprintf("machine.driver %q is not implemented on %s", cfg.Machine.Driver, runtime.GOOS))
}
