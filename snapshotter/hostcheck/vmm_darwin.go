package hostcheck

import "context"

// checkVMM looks for what runs machines.
func (h *host) checkVMM(context.Context) []Finding {
	if d := h.cfg.Machine.Driver; d != "vz" {
		return []Finding{fail("set machine.driver = \"vz\"", "virtual machine monitor: machine.driver %q does not exist on macOS", d)}
	}
	return []Finding{warn("report what you see", "virtual machine monitor: the driver for Virtualization.framework has not been tried on a Mac yet")}
}
