//go:build (darwin && cgo) || vzsim

package vz

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/Code-Hex/vz/v3"

	"github.com/applevm/applevm/vmm"
)

var _ vmm.Saver = (*machine)(nil)

// What the directory of a saved state has: the framework's file, and the machine's identity, without which
// it is not taken.
const (
	stateFile      = "state"
	identifierFile = "identifier"
)

// saveTimeout is for the guest's whole memory to or from a disk.
const saveTimeout = 10 * time.Minute

// Save implements vmm.Saver.
func (m *machine) Save(ctx context.Context, dir string) (err error) {
	vm, err := m.running()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("machine %s: save its state: %w", m.plan.Name, err)
		}
	}()
	if state := vm.State(); state != vz.VirtualMachineStatePaused {
		return fmt.Errorf("it is not paused (the framework's state is %d)", state)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	if err := saveState(ctx, vm, filepath.Join(dir, stateFile)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, identifierFile), m.identifier, 0o600)
}

// machineIdentifier is a new machine's identity, or that of the one whose state is restored.
func machineIdentifier(p *plan) (*vz.GenericMachineIdentifier, error) {
	if p.Restore == "" {
		id, err := vz.NewGenericMachineIdentifier()
		if err != nil {
			return nil, explain("machine identifier", err)
		}
		return id, nil
	}
	b, err := os.ReadFile(filepath.Join(p.Restore, identifierFile))
	if err != nil {
		return nil, err
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("%s has no machine's identity", p.Restore)
	}
	id, err := vz.NewGenericMachineIdentifierWithData(b)
	if err != nil {
		return nil, explain("machine identifier", err)
	}
	return id, nil
}
