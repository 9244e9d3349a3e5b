package vz

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"sync"
)

// QEMU cannot save a machine with a vsock device of ours (it refuses to migrate vhost-user-vsock). So what is
// imitated here are the framework's rules, not the state: a saved machine stays in this process, paused, when it is
// stopped, and goes on as the one that restores it.

// saved are machines by what is written to the files of their states.
var saved struct {
	sync.Mutex
	machines map[string]*VirtualMachine
}

func invalidState(s VirtualMachineState) error {
	return &NSError{Domain: "VZErrorDomain", Code: 3, LocalizedDescription: fmt.Sprintf("Invalid virtual machine state transition from %d.", s)}
}

// ValidateSaveRestoreSupport tells whether a machine with this configuration can be saved.
func (v *VirtualMachineConfiguration) ValidateSaveRestoreSupport() (bool, error) { return true, nil }

// SaveMachineStateToPath saves a paused machine's state.
func (v *VirtualMachine) SaveMachineStateToPath(saveFilePath string) error {
	if s := v.State(); s != VirtualMachineStatePaused {
		return invalidState(s)
	}
	if err := os.WriteFile(saveFilePath, []byte(v.dir.path), 0o600); err != nil {
		return err
	}
	saved.Lock()
	defer saved.Unlock()
	if saved.machines == nil {
		saved.machines = map[string]*VirtualMachine{}
	}
	saved.machines[v.dir.path] = v
	return nil
}

// RestoreMachineStateFromURL brings back a machine with the same configuration, paused, in one that has not
// been started.
func (v *VirtualMachine) RestoreMachineStateFromURL(saveFilePath string) error {
	b, err := os.ReadFile(saveFilePath)
	if err != nil {
		return err
	}
	v.mu.Lock()
	used := v.used
	v.used = true
	v.mu.Unlock()
	if used {
		return invalidState(v.State())
	}
	saved.Lock()
	defer saved.Unlock()
	s, ok := saved.machines[string(b)]
	if !ok || !bytes.Equal(s.id, v.id) || !reflect.DeepEqual(s.config, v.config) {
		return &NSError{Domain: "VZErrorDomain", Code: 12, LocalizedDescription: "The saved state does not fit the configuration."}
	}
	if s.State() != VirtualMachineStateStopped {
		return &NSError{Domain: "VZErrorDomain", Code: 12, LocalizedDescription: "Here a machine is restored only when the one that was saved has been stopped."}
	}
	delete(saved.machines, string(b))
	unused := v.dir
	v.m, v.dir = s.m, s.dir
	if err := v.socket.use(v.m); err != nil {
		return err
	}
	v.set(VirtualMachineStatePaused)
	go v.watch()
	return unused.remove()
}

// keepSaved stops a machine that goes on in another; false if it is none.
func (v *VirtualMachine) keepSaved() bool {
	saved.Lock()
	defer saved.Unlock()
	if saved.machines[v.dir.path] != v || v.State() != VirtualMachineStatePaused {
		return false
	}
	v.set(VirtualMachineStateStopped)
	return true
}

// forgetSaved is called when a machine runs on: its saved state is older then.
func (v *VirtualMachine) forgetSaved() {
	saved.Lock()
	defer saved.Unlock()
	delete(saved.machines, v.dir.path)
}
