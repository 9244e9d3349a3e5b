package vz

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/qemu"
)

// VirtualMachineState is what a machine does.
type VirtualMachineState int

const (
	VirtualMachineStateStopped VirtualMachineState = iota
	VirtualMachineStateRunning
	VirtualMachineStatePaused
	VirtualMachineStateError
	VirtualMachineStateStarting
	VirtualMachineStatePausing
	VirtualMachineStateResuming
	VirtualMachineStateStopping
)

// VirtualMachine is a QEMU machine behind the framework's interface.
type VirtualMachine struct {
	m      vmm.Machine
	config vmm.Config // without what is of this machine alone
	id     []byte
	dir    *workDir
	screen *os.File
	socket *VirtioSocketDevice
	states chan VirtualMachineState

	mu    sync.Mutex
	state VirtualMachineState
	used  bool
}

// NewVirtualMachine returns a machine that is stopped.
func NewVirtualMachine(config *VirtualMachineConfiguration) (*VirtualMachine, error) {
	drv, err := qemu.New(qemu.Options{})
	if err != nil {
		return nil, err
	}
	dir, err := newWorkDir()
	if err != nil {
		return nil, err
	}
	v := &VirtualMachine{dir: dir, states: make(chan VirtualMachineState, 64)}
	cfg := vmm.Config{
		Name: "stand-in", Dir: dir.path, CPUs: int(config.cpus), Memory: int64(config.memory),
		Kernel: config.loader.vmlinuz, Initrd: config.loader.initrd,
		Nested: config.platform.(*GenericPlatformConfiguration).nested,
	}
	for _, p := range strings.Fields(config.loader.cmdline) {
		if p != "console=hvc0" { // QEMU's driver has a console of its own
			cfg.Cmdline = append(cfg.Cmdline, p)
		}
	}
	for _, d := range config.storage {
		b := d.(*VirtioBlockDeviceConfiguration)
		cfg.Disks = append(cfg.Disks, vmm.Disk{ID: b.id, Path: b.attachment.path, ReadOnly: b.attachment.readOnly})
	}
	for _, d := range config.shares {
		s := d.(*VirtioFileSystemDeviceConfiguration)
		dir := s.share.directory()
		cfg.Shares = append(cfg.Shares, vmm.Share{Tag: s.tag, Path: dir.path, ReadOnly: dir.readOnly})
	}
	for _, n := range config.network {
		nic := vmm.NIC{MAC: n.mac, MTU: 1500, NAT: true}
		if f, ok := n.attachment.(*FileHandleNetworkDeviceAttachment); ok {
			nic = vmm.NIC{MAC: n.mac, MTU: f.mtu, File: f.file}
		}
		cfg.NICs = append(cfg.NICs, nic)
	}
	if len(config.serial) > 0 {
		v.screen = config.serial[0].attachment.write
	}
	v.config = cfg
	v.config.Dir, v.config.NICs = "", nil
	if id := config.platform.(*GenericPlatformConfiguration).id; id != nil {
		v.id = id.data
	}
	if v.m, err = drv.New(cfg); err != nil {
		_ = dir.remove()
		return nil, err
	}
	v.socket = &VirtioSocketDevice{m: v.m}
	return v, nil
}

// SocketDevices returns its vsock device.
func (v *VirtualMachine) SocketDevices() []*VirtioSocketDevice {
	return []*VirtioSocketDevice{v.socket}
}

// State returns what it does.
func (v *VirtualMachine) State() VirtualMachineState {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state
}

// StateChangedNotify returns all that it will do.
func (v *VirtualMachine) StateChangedNotify() <-chan VirtualMachineState { return v.states }

func (v *VirtualMachine) set(s VirtualMachineState) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state = s
	v.states <- s
}

// VirtualMachineStartOption is an option of Start.
type VirtualMachineStartOption func(*virtualMachineStartOptions) error

type virtualMachineStartOptions struct{}

// Start starts it, once.
func (v *VirtualMachine) Start(opts ...VirtualMachineStartOption) error {
	v.mu.Lock()
	used := v.used
	v.used = true
	v.mu.Unlock()
	if used {
		return invalidState(v.State())
	}
	v.set(VirtualMachineStateStarting)
	if err := v.m.Start(context.Background()); err != nil {
		v.set(VirtualMachineStateStopped)
		return errors.Join(err, v.dir.remove())
	}
	v.set(VirtualMachineStateRunning)
	go v.watch()
	return nil
}

// watch copies the console and tells of the end.
func (v *VirtualMachine) watch() {
	var told []byte
	for ended := false; !ended; {
		select {
		case <-v.m.Done():
			ended = true
		case <-time.After(20 * time.Millisecond):
		}
		told = v.print(told, v.m.Console())
	}
	_ = v.dir.remove()
	if err := v.m.Err(); err != nil && !strings.Contains(err.Error(), "panicked") {
		v.set(VirtualMachineStateError)
		return
	}
	v.set(VirtualMachineStateStopped)
}

// print writes what has come to the console, of which only the end is kept.
func (v *VirtualMachine) print(told, now []byte) []byte {
	fresh := now
	if n := len(told); bytes.HasPrefix(now, told) {
		fresh = now[n:]
	} else if tail := told[max(0, n-256):]; len(tail) > 0 {
		if i := bytes.LastIndex(now, tail); i >= 0 {
			fresh = now[i+len(tail):]
		}
	}
	if v.screen != nil && len(fresh) > 0 {
		_, _ = v.screen.Write(fresh)
	}
	return now
}

// Pause pauses it.
func (v *VirtualMachine) Pause() error {
	return v.change(VirtualMachineStateRunning, VirtualMachineStatePaused, v.m.Pause)
}

// Resume lets it run on.
func (v *VirtualMachine) Resume() error {
	return v.change(VirtualMachineStatePaused, VirtualMachineStateRunning, func(ctx context.Context) error {
		v.forgetSaved()
		return v.m.Resume(ctx)
	})
}

func (v *VirtualMachine) change(from, to VirtualMachineState, f func(context.Context) error) error {
	if s := v.State(); s != from {
		return invalidState(s)
	}
	if err := f(context.Background()); err != nil {
		return err
	}
	v.set(to)
	return nil
}

// Stop stops it at once.
func (v *VirtualMachine) Stop() error {
	v.mu.Lock()
	v.used = true
	v.mu.Unlock()
	if v.keepSaved() {
		return nil
	}
	err := v.m.Stop(context.Background())
	<-v.m.Done()
	return errors.Join(err, v.dir.remove()) // it may never have started
}
