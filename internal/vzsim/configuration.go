package vz

import (
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
)

// VirtualMachineConfiguration is what a machine is made from.
type VirtualMachineConfiguration struct {
	loader   *LinuxBootLoader
	cpus     uint
	memory   uint64
	platform PlatformConfiguration
	storage  []StorageDeviceConfiguration
	shares   []DirectorySharingDeviceConfiguration
	network  []*VirtioNetworkDeviceConfiguration
	sockets  []SocketDeviceConfiguration
	entropy  []*VirtioEntropyDeviceConfiguration
	balloons []MemoryBalloonDeviceConfiguration
	serial   []*VirtioConsoleDeviceSerialPortConfiguration
}

// NewVirtualMachineConfiguration returns a configuration without devices.
func NewVirtualMachineConfiguration(bootLoader BootLoader, cpu uint, memorySize uint64) (*VirtualMachineConfiguration, error) {
	return &VirtualMachineConfiguration{loader: bootLoader.(*LinuxBootLoader), cpus: cpu, memory: memorySize}, nil
}

// maxStorage stands for a bound of the framework's, which is not documented.
const maxStorage = 64

// Validate refuses what the framework would.
func (v *VirtualMachineConfiguration) Validate() (bool, error) {
	if v.cpus < VirtualMachineConfigurationMinimumAllowedCPUCount() || v.cpus > VirtualMachineConfigurationMaximumAllowedCPUCount() {
		return false, fmt.Errorf("%d CPUs", v.cpus)
	}
	if v.memory%(1<<20) != 0 || v.memory < VirtualMachineConfigurationMinimumAllowedMemorySize() || v.memory > VirtualMachineConfigurationMaximumAllowedMemorySize() {
		return false, fmt.Errorf("memory of %d bytes", v.memory)
	}
	if len(v.storage) > maxStorage {
		return false, &NSError{Domain: "VZErrorDomain", Code: 2, LocalizedDescription: "Too many storage devices."}
	}
	if v.platform == nil || len(v.sockets) > 1 || len(v.balloons) > 1 {
		return false, fmt.Errorf("no platform, or more than one vsock device or balloon")
	}
	return true, nil
}

// The setters replace all devices of a kind.
func (v *VirtualMachineConfiguration) SetEntropyDevicesVirtualMachineConfiguration(cs []*VirtioEntropyDeviceConfiguration) {
	v.entropy = cs
}

func (v *VirtualMachineConfiguration) SetMemoryBalloonDevicesVirtualMachineConfiguration(cs []MemoryBalloonDeviceConfiguration) {
	v.balloons = cs
}

func (v *VirtualMachineConfiguration) SetNetworkDevicesVirtualMachineConfiguration(cs []*VirtioNetworkDeviceConfiguration) {
	v.network = cs
}

func (v *VirtualMachineConfiguration) SetSerialPortsVirtualMachineConfiguration(cs []*VirtioConsoleDeviceSerialPortConfiguration) {
	v.serial = cs
}

func (v *VirtualMachineConfiguration) SetSocketDevicesVirtualMachineConfiguration(cs []SocketDeviceConfiguration) {
	v.sockets = cs
}

func (v *VirtualMachineConfiguration) SetStorageDevicesVirtualMachineConfiguration(cs []StorageDeviceConfiguration) {
	v.storage = cs
}

func (v *VirtualMachineConfiguration) SetDirectorySharingDevicesVirtualMachineConfiguration(cs []DirectorySharingDeviceConfiguration) {
	v.shares = cs
}

func (v *VirtualMachineConfiguration) SetPlatformVirtualMachineConfiguration(c PlatformConfiguration) {
	v.platform = c
}

// The bounds are those of this stand-in.
func VirtualMachineConfigurationMinimumAllowedMemorySize() uint64 { return 4 << 20 }

func VirtualMachineConfigurationMaximumAllowedMemorySize() uint64 { return 1 << 40 }

func VirtualMachineConfigurationMinimumAllowedCPUCount() uint { return 1 }

func VirtualMachineConfigurationMaximumAllowedCPUCount() uint { return max(2, uint(runtime.NumCPU())) }

// BootLoader is how a machine starts.
type BootLoader interface{ bootLoader() }

// LinuxBootLoader starts a Linux kernel.
type LinuxBootLoader struct{ vmlinuz, initrd, cmdline string }

func (*LinuxBootLoader) bootLoader() {}

// LinuxBootLoaderOption is an option of NewLinuxBootLoader.
type LinuxBootLoaderOption func(b *LinuxBootLoader) error

// WithCommandLine sets the kernel's command line.
func WithCommandLine(cmdLine string) LinuxBootLoaderOption {
	return func(b *LinuxBootLoader) error { b.cmdline = cmdLine; return nil }
}

// WithInitrd sets the initramfs.
func WithInitrd(initrdPath string) LinuxBootLoaderOption {
	return func(b *LinuxBootLoader) error {
		b.initrd = initrdPath
		_, err := os.Stat(initrdPath)
		return err
	}
}

// NewLinuxBootLoader returns a loader of the kernel.
func NewLinuxBootLoader(vmlinuz string, opts ...LinuxBootLoaderOption) (*LinuxBootLoader, error) {
	if _, err := os.Stat(vmlinuz); err != nil {
		return nil, err
	}
	b := &LinuxBootLoader{vmlinuz: vmlinuz}
	for _, o := range opts {
		if err := o(b); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// PlatformConfiguration is the kind of machine.
type PlatformConfiguration interface{ platformConfiguration() }

// GenericPlatformConfiguration is the kind that runs Linux.
type GenericPlatformConfiguration struct {
	id     *GenericMachineIdentifier
	nested bool
}

func (*GenericPlatformConfiguration) platformConfiguration() {}

// GenericPlatformConfigurationOption is an option of NewGenericPlatformConfiguration.
type GenericPlatformConfigurationOption func(*GenericPlatformConfiguration) error

// NewGenericPlatformConfiguration returns a platform.
func NewGenericPlatformConfiguration(opts ...GenericPlatformConfigurationOption) (*GenericPlatformConfiguration, error) {
	p := &GenericPlatformConfiguration{}
	for _, o := range opts {
		if err := o(p); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// IsNestedVirtualizationSupported tells whether machines can run machines: here the guest can where
// QEMU emulates what it needs.
func IsNestedVirtualizationSupported() bool { return true }

// SetNestedVirtualizationEnabled has the machine run machines.
func (p *GenericPlatformConfiguration) SetNestedVirtualizationEnabled(enable bool) error {
	p.nested = enable
	return nil
}

// GenericMachineIdentifier tells machines apart.
type GenericMachineIdentifier struct{ data []byte }

// NewGenericMachineIdentifier returns a new one.
func NewGenericMachineIdentifier() (*GenericMachineIdentifier, error) {
	return &GenericMachineIdentifier{data: []byte(rand.Text())}, nil
}

// NewGenericMachineIdentifierWithData returns one from its representation.
func NewGenericMachineIdentifierWithData(b []byte) (*GenericMachineIdentifier, error) {
	return &GenericMachineIdentifier{data: b}, nil
}

// DataRepresentation is what it can be made from again.
func (g *GenericMachineIdentifier) DataRepresentation() []byte { return g.data }

// WithGenericMachineIdentifier sets it.
func WithGenericMachineIdentifier(m *GenericMachineIdentifier) GenericPlatformConfigurationOption {
	return func(p *GenericPlatformConfiguration) error { p.id = m; return nil }
}
