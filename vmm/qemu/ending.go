package qemu

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/internal/console"
)

// ending is what is known when QEMU's process has ended.
type ending struct {
	name    string
	memory  int64
	asked   bool  // by Stop or Kill
	wait    error // exec.Cmd.Wait's
	fault   error // of the vsock device
	console []byte
	stderr  []byte
}

// explain says why the machine ended, nil if it was meant to.
func (e *ending) explain() error {
	if e.asked {
		return nil
	}
	var exit *exec.ExitError
	switch {
	case e.wait == nil:
		return e.explainGuest()
	case errors.As(e.wait, &exit) && exit.ExitCode() < 0:
		return e.with(fmt.Errorf("machine %s: QEMU was ended from outside (%w)", e.name, exit))
	}
	return e.explainQEMU()
}

// explainGuest is for a QEMU that ended well, because its guest reset or
// powered off.
func (e *ending) explainGuest() error {
	end, said := console.EndOf(e.console)
	e.console = said
	switch end {
	case console.Panicked:
		return e.with(fmt.Errorf("machine %s: the guest's kernel panicked", e.name))
	case console.Unknown:
		return e.with(fmt.Errorf("machine %s: the guest's processor reset itself (triple fault)", e.name))
	}
	return nil
}

// explainQEMU is for a QEMU that gave up.
func (e *ending) explainQEMU() error {
	said := console.LastLines(e.stderr, 5)
	if noMemory(said) {
		return fmt.Errorf("machine %s: QEMU cannot get the machine's %d MiB: %w; give the machine less (%s)",
			e.name, e.memory>>20, vmm.ErrInsufficientMemory, said)
	}
	if strings.Contains(said, "lock") && strings.Contains(said, "another process") {
		return fmt.Errorf("machine %s: a disk is in use by another machine: %s", e.name, said)
	}
	if said == "" {
		return e.with(fmt.Errorf("machine %s: QEMU failed (%w)", e.name, e.wait))
	}
	return e.with(fmt.Errorf("machine %s: QEMU failed (%w): %s", e.name, e.wait, said))
}

// noMemory recognizes how QEMU and glib say that memory is short.
func noMemory(said string) bool {
	for _, text := range []string{"Cannot allocate memory", "cannot set up guest memory", "failed to allocate"} {
		if strings.Contains(said, text) {
			return true
		}
	}
	return false
}

// with adds what else is known: the console's last lines and the device's fault.
func (e *ending) with(err error) error {
	if e.fault != nil {
		err = fmt.Errorf("%w; %w", err, e.fault)
	}
	if lines := console.LastLines(e.console, 10); lines != "" {
		return fmt.Errorf("%w; the console's last lines:\n%s", err, lines)
	}
	return fmt.Errorf("%w; the console is empty", err)
}
