//go:build (darwin && cgo) || vzsim

package vz

import (
	"errors"
	"fmt"
	"os"

	"github.com/Code-Hex/vz/v3"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
)

// files are those that the framework uses for as long as the machine runs: it takes no
// duplicates (NSFileHandle's initWithFileDescriptor).
type files []*os.File

func (f files) close() {
	for _, f := range f {
		_ = f.Close()
	}
}

// configure makes the framework's configuration. The guest's console is written to
// console. What is added to keep must stay open until the machine has ended, also if
// configure fails.
func configure(p *plan, id *vz.GenericMachineIdentifier, console *os.File, keep *files) (*vz.VirtualMachineConfiguration, error) {
	loader, err := vz.NewLinuxBootLoader(p.Kernel, vz.WithCommandLine(p.cmdline), vz.WithInitrd(p.Initrd))
	if err != nil {
		return nil, explain("boot loader", err)
	}
	cpus := min(uint(p.CPUs), vz.VirtualMachineConfigurationMaximumAllowedCPUCount())
	memory := uint64(p.Memory)
	if most := vz.VirtualMachineConfigurationMaximumAllowedMemorySize(); memory > most {
		return nil, fmt.Errorf("memory of %d MiB, this Mac allows %d: %w", memory>>20, most>>20, vmm.ErrInsufficientMemory)
	}
	c, err := vz.NewVirtualMachineConfiguration(loader, cpus, max(memory, vz.VirtualMachineConfigurationMinimumAllowedMemorySize()))
	if err != nil {
		return nil, explain("configuration", err)
	}
	for _, add := range []func(*plan, *vz.VirtualMachineConfiguration) error{addDisks, addShares, addSmall} {
		if err := add(p, c); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(addPlatform(p, id, c), addNICs(p, c, keep), addConsole(c, console, keep)); err != nil {
		return nil, err
	}
	if ok, err := c.Validate(); err != nil || !ok {
		return nil, fmt.Errorf("the framework refuses the configuration, with %d disks, %d shares and %d network interfaces: %w",
			len(p.Disks), len(p.shares), len(p.NICs), err)
	}
	return c, nil
}

// explain says what an older macOS lacks.
func explain(what string, err error) error {
	if errors.Is(err, vz.ErrUnsupportedOSVersion) || errors.Is(err, vz.ErrBuildTargetOSVersion) {
		return fmt.Errorf("%s: %w: macOS 13 or newer is needed", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// addPlatform gives the machine its identity.
func addPlatform(p *plan, id *vz.GenericMachineIdentifier, c *vz.VirtualMachineConfiguration) error {
	platform, err := vz.NewGenericPlatformConfiguration(vz.WithGenericMachineIdentifier(id))
	if err != nil {
		return explain("platform", err)
	}
	if p.Nested {
		if !vz.IsNestedVirtualizationSupported() {
			return errors.New("this Mac cannot run machines in machines, for which /dev/kvm is: that takes an M3 or newer and macOS 15")
		}
		if err := platform.SetNestedVirtualizationEnabled(true); err != nil {
			return explain("nested virtualization", err)
		}
	}
	c.SetPlatformVirtualMachineConfiguration(platform)
	return nil
}

// addDisks attaches the disks as virtio block devices, which the guest finds by serial
// number. Reads go through the host's page cache, so that machines share their layers'
// pages, and because uncached access to image files has shown corrupt data to Linux
// guests (users of other tools have reported it). A flush by the guest is an fsync of the
// host: it survives the end of the machine, of its process and of macOS, and is many
// times quicker than the full one, which waits for the drive's own cache too.
func addDisks(p *plan, c *vz.VirtualMachineConfiguration) error {
	var devices []vz.StorageDeviceConfiguration
	for _, d := range p.Disks {
		sync := vz.DiskImageSynchronizationModeFsync
		if d.ReadOnly {
			sync = vz.DiskImageSynchronizationModeNone
		}
		a, err := vz.NewDiskImageStorageDeviceAttachmentWithCacheAndSync(d.Path, d.ReadOnly, vz.DiskImageCachingModeCached, sync)
		if err != nil {
			return explain("disk "+d.Path, err)
		}
		dev, err := vz.NewVirtioBlockDeviceConfiguration(a)
		if err != nil {
			return explain("disk "+d.Path, err)
		}
		if err := dev.SetBlockDeviceIdentifier(d.ID); err != nil {
			return explain("disk "+d.Path, err)
		}
		devices = append(devices, dev)
	}
	c.SetStorageDevicesVirtualMachineConfiguration(devices)
	return nil
}

func addShares(p *plan, c *vz.VirtualMachineConfiguration) error {
	var devices []vz.DirectorySharingDeviceConfiguration
	for _, s := range p.shares {
		dir, err := vz.NewSharedDirectory(s.dir, s.readOnly)
		if err != nil {
			return explain("share "+s.dir, err)
		}
		single, err := vz.NewSingleDirectoryShare(dir)
		if err != nil {
			return explain("share "+s.dir, err)
		}
		dev, err := sharing(s.tag, single)
		if err != nil {
			return explain("share "+s.dir, err)
		}
		devices = append(devices, dev)
	}
	if p.Translator {
		s, err := translatorShare()
		if err != nil {
			return err
		}
		dev, err := sharing(vmm.TranslatorTag, s)
		if err != nil {
			return explain("Rosetta", err)
		}
		devices = append(devices, dev)
	}
	c.SetDirectorySharingDevicesVirtualMachineConfiguration(devices)
	return nil
}

// sharing is a device that shares s.
func sharing(tag string, s vz.DirectoryShare) (*vz.VirtioFileSystemDeviceConfiguration, error) {
	dev, err := vz.NewVirtioFileSystemDeviceConfiguration(tag)
	if err == nil {
		dev.SetDirectoryShare(s)
	}
	return dev, err
}

// attachment is what an interface is connected to.
func attachment(n vmm.NIC, keep *files) (vz.NetworkDeviceAttachment, error) {
	if n.NAT {
		a, err := vz.NewNATNetworkDeviceAttachment()
		if err != nil {
			return nil, explain("network interface", err)
		}
		return a, nil
	}
	f, err := duplicate(n.File)
	if err != nil {
		return nil, fmt.Errorf("network interface: %w", err)
	}
	*keep = append(*keep, f)
	a, err := vz.NewFileHandleNetworkDeviceAttachment(f)
	if err == nil {
		err = a.SetMaximumTransmissionUnit(mtu(n))
	}
	if err != nil {
		return nil, explain("network interface", err)
	}
	return a, nil
}

func addNICs(p *plan, c *vz.VirtualMachineConfiguration, keep *files) error {
	var devices []*vz.VirtioNetworkDeviceConfiguration
	for _, n := range p.NICs {
		a, err := attachment(n, keep)
		if err != nil {
			return err
		}
		dev, err := vz.NewVirtioNetworkDeviceConfiguration(a)
		if err != nil {
			return explain("network interface", err)
		}
		mac, err := vz.NewMACAddress(n.MAC)
		if err != nil {
			return explain("network interface", err)
		}
		dev.SetMACAddress(mac)
		devices = append(devices, dev)
	}
	c.SetNetworkDevicesVirtualMachineConfiguration(devices)
	return nil
}

// addSmall adds the devices that every machine has.
func addSmall(_ *plan, c *vz.VirtualMachineConfiguration) error {
	socket, err := vz.NewVirtioSocketDeviceConfiguration()
	if err != nil {
		return explain("vsock device", err)
	}
	c.SetSocketDevicesVirtualMachineConfiguration([]vz.SocketDeviceConfiguration{socket})
	entropy, err := vz.NewVirtioEntropyDeviceConfiguration()
	if err != nil {
		return explain("entropy device", err)
	}
	c.SetEntropyDevicesVirtualMachineConfiguration([]*vz.VirtioEntropyDeviceConfiguration{entropy})
	balloon, err := vz.NewVirtioTraditionalMemoryBalloonDeviceConfiguration()
	if err != nil {
		return explain("memory balloon", err)
	}
	c.SetMemoryBalloonDevicesVirtualMachineConfiguration([]vz.MemoryBalloonDeviceConfiguration{balloon})
	return nil
}

func addConsole(c *vz.VirtualMachineConfiguration, out *os.File, keep *files) error {
	in, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	*keep = append(*keep, in)
	a, err := vz.NewFileHandleSerialPortAttachment(in, out)
	if err != nil {
		return explain("console", err)
	}
	port, err := vz.NewVirtioConsoleDeviceSerialPortConfiguration(a)
	if err != nil {
		return explain("console", err)
	}
	c.SetSerialPortsVirtualMachineConfiguration([]*vz.VirtioConsoleDeviceSerialPortConfiguration{port})
	return nil
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
