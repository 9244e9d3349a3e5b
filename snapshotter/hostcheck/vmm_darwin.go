package hostcheck

import "context"

// checkVMM looks for what runs machines.
func (h *host) checkVMM(context.Context) []Finding {
	return []Finding{fail("run containers on Linux until it is", "virtual machine monitor: machine.driver %q is not implemented on macOS", h.cfg.Machine.Driver)}
}
