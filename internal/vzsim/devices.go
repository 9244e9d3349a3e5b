package vz

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// DiskImageCachingMode and DiskImageSynchronizationMode are how a disk image is used.
type (
	DiskImageCachingMode         int
	DiskImageSynchronizationMode int
)

const (
	DiskImageCachingModeAutomatic DiskImageCachingMode = iota
	DiskImageCachingModeUncached
	DiskImageCachingModeCached
)

const (
	DiskImageSynchronizationModeFull DiskImageSynchronizationMode = 1 + iota
	DiskImageSynchronizationModeFsync
	DiskImageSynchronizationModeNone
)

// StorageDeviceAttachment is what a storage device holds.
type StorageDeviceAttachment interface{ storageDeviceAttachment() }

// DiskImageStorageDeviceAttachment is a disk image.
type DiskImageStorageDeviceAttachment struct {
	path     string
	readOnly bool
}

func (*DiskImageStorageDeviceAttachment) storageDeviceAttachment() {}

// NewDiskImageStorageDeviceAttachmentWithCacheAndSync returns one.
func NewDiskImageStorageDeviceAttachmentWithCacheAndSync(diskPath string, readOnly bool, cachingMode DiskImageCachingMode, syncMode DiskImageSynchronizationMode) (*DiskImageStorageDeviceAttachment, error) {
	if _, err := os.Stat(diskPath); err != nil {
		return nil, err
	}
	return &DiskImageStorageDeviceAttachment{diskPath, readOnly}, nil
}

// StorageDeviceConfiguration is a storage device.
type StorageDeviceConfiguration interface{ storageDeviceConfiguration() }

// VirtioBlockDeviceConfiguration is a virtio block device.
type VirtioBlockDeviceConfiguration struct {
	attachment *DiskImageStorageDeviceAttachment
	id         string
}

func (*VirtioBlockDeviceConfiguration) storageDeviceConfiguration() {}

// NewVirtioBlockDeviceConfiguration returns one.
func NewVirtioBlockDeviceConfiguration(attachment StorageDeviceAttachment) (*VirtioBlockDeviceConfiguration, error) {
	return &VirtioBlockDeviceConfiguration{attachment: attachment.(*DiskImageStorageDeviceAttachment)}, nil
}

// SetBlockDeviceIdentifier sets the serial number.
func (v *VirtioBlockDeviceConfiguration) SetBlockDeviceIdentifier(identifier string) error {
	if len(identifier) > 20 {
		return &NSError{Domain: "VZErrorDomain", Code: 2, LocalizedDescription: "identifier " + identifier}
	}
	v.id = identifier
	return nil
}

// DirectorySharingDeviceConfiguration is a device that shares directories.
type DirectorySharingDeviceConfiguration interface{ directorySharingDeviceConfiguration() }

// VirtioFileSystemDeviceConfiguration is a virtio file system device.
type VirtioFileSystemDeviceConfiguration struct {
	tag   string
	share DirectoryShare
}

func (*VirtioFileSystemDeviceConfiguration) directorySharingDeviceConfiguration() {}

// NewVirtioFileSystemDeviceConfiguration returns one.
func NewVirtioFileSystemDeviceConfiguration(tag string) (*VirtioFileSystemDeviceConfiguration, error) {
	if tag == "" || len(tag) > 36 {
		return nil, fmt.Errorf("tag %q", tag)
	}
	return &VirtioFileSystemDeviceConfiguration{tag: tag}, nil
}

// SetDirectoryShare sets what it shares.
func (c *VirtioFileSystemDeviceConfiguration) SetDirectoryShare(share DirectoryShare) {
	c.share = share
}

// SharedDirectory is a directory.
type SharedDirectory struct {
	path     string
	readOnly bool
}

// NewSharedDirectory returns one.
func NewSharedDirectory(dirPath string, readOnly bool) (*SharedDirectory, error) {
	if _, err := os.Stat(dirPath); err != nil {
		return nil, err
	}
	return &SharedDirectory{dirPath, readOnly}, nil
}

// DirectoryShare is what a device shares.
type DirectoryShare interface {
	directoryShare()
	directory() *SharedDirectory
}

// SingleDirectoryShare is one directory.
type SingleDirectoryShare struct{ dir *SharedDirectory }

func (*SingleDirectoryShare) directoryShare() {}

func (s *SingleDirectoryShare) directory() *SharedDirectory { return s.dir }

// NewSingleDirectoryShare returns one.
func NewSingleDirectoryShare(share *SharedDirectory) (*SingleDirectoryShare, error) {
	return &SingleDirectoryShare{share}, nil
}

// NetworkDeviceAttachment is what an interface is connected to.
type NetworkDeviceAttachment interface{ networkDeviceAttachment() }

// FileHandleNetworkDeviceAttachment is a datagram socket.
type FileHandleNetworkDeviceAttachment struct {
	file *os.File
	mtu  int
}

func (*FileHandleNetworkDeviceAttachment) networkDeviceAttachment() {}

// NewFileHandleNetworkDeviceAttachment returns one.
func NewFileHandleNetworkDeviceAttachment(file *os.File) (*FileHandleNetworkDeviceAttachment, error) {
	kind, err := syscall.GetsockoptInt(int(file.Fd()), syscall.SOL_SOCKET, syscall.SO_TYPE)
	if err != nil || kind != syscall.SOCK_DGRAM {
		return nil, errors.New("the fileHandle must be a datagram socket")
	}
	return &FileHandleNetworkDeviceAttachment{file: file, mtu: 1500}, nil
}

// SetMaximumTransmissionUnit sets the longest packet.
func (f *FileHandleNetworkDeviceAttachment) SetMaximumTransmissionUnit(mtu int) error {
	if mtu < 1500 || mtu > 65535 {
		return fmt.Errorf("maximum transmission unit %d", mtu)
	}
	f.mtu = mtu
	return nil
}

// NATNetworkDeviceAttachment is the host's NAT: here QEMU's.
type NATNetworkDeviceAttachment struct{}

func (*NATNetworkDeviceAttachment) networkDeviceAttachment() {}

// NewNATNetworkDeviceAttachment returns one.
func NewNATNetworkDeviceAttachment() (*NATNetworkDeviceAttachment, error) {
	return &NATNetworkDeviceAttachment{}, nil
}

// VirtioNetworkDeviceConfiguration is a virtio network interface.
type VirtioNetworkDeviceConfiguration struct {
	attachment NetworkDeviceAttachment
	mac        net.HardwareAddr
}

// NewVirtioNetworkDeviceConfiguration returns one.
func NewVirtioNetworkDeviceConfiguration(attachment NetworkDeviceAttachment) (*VirtioNetworkDeviceConfiguration, error) {
	return &VirtioNetworkDeviceConfiguration{attachment: attachment}, nil
}

// SetMACAddress sets its address.
func (v *VirtioNetworkDeviceConfiguration) SetMACAddress(macAddress *MACAddress) {
	v.mac = macAddress.addr
}

// MACAddress is an interface's address.
type MACAddress struct{ addr net.HardwareAddr }

// NewMACAddress returns one.
func NewMACAddress(macAddr net.HardwareAddr) (*MACAddress, error) { return &MACAddress{macAddr}, nil }

// SocketDeviceConfiguration is a vsock device.
type SocketDeviceConfiguration interface{ socketDeviceConfiguration() }

// VirtioSocketDeviceConfiguration is a virtio one.
type VirtioSocketDeviceConfiguration struct{}

func (*VirtioSocketDeviceConfiguration) socketDeviceConfiguration() {}

// NewVirtioSocketDeviceConfiguration returns one.
func NewVirtioSocketDeviceConfiguration() (*VirtioSocketDeviceConfiguration, error) {
	return &VirtioSocketDeviceConfiguration{}, nil
}

// VirtioEntropyDeviceConfiguration is a source of random numbers.
type VirtioEntropyDeviceConfiguration struct{}

// NewVirtioEntropyDeviceConfiguration returns one.
func NewVirtioEntropyDeviceConfiguration() (*VirtioEntropyDeviceConfiguration, error) {
	return &VirtioEntropyDeviceConfiguration{}, nil
}

// MemoryBalloonDeviceConfiguration is a memory balloon.
type MemoryBalloonDeviceConfiguration interface{ memoryBalloonDeviceConfiguration() }

// VirtioTraditionalMemoryBalloonDeviceConfiguration is a virtio one.
type VirtioTraditionalMemoryBalloonDeviceConfiguration struct{}

func (*VirtioTraditionalMemoryBalloonDeviceConfiguration) memoryBalloonDeviceConfiguration() {}

// NewVirtioTraditionalMemoryBalloonDeviceConfiguration returns one.
func NewVirtioTraditionalMemoryBalloonDeviceConfiguration() (*VirtioTraditionalMemoryBalloonDeviceConfiguration, error) {
	return &VirtioTraditionalMemoryBalloonDeviceConfiguration{}, nil
}

// SerialPortAttachment is what a console is connected to.
type SerialPortAttachment interface{ serialPortAttachment() }

// FileHandleSerialPortAttachment are two files.
type FileHandleSerialPortAttachment struct{ write *os.File }

func (*FileHandleSerialPortAttachment) serialPortAttachment() {}

// NewFileHandleSerialPortAttachment returns one.
func NewFileHandleSerialPortAttachment(read, write *os.File) (*FileHandleSerialPortAttachment, error) {
	return &FileHandleSerialPortAttachment{write}, nil
}

// VirtioConsoleDeviceSerialPortConfiguration is a virtio console.
type VirtioConsoleDeviceSerialPortConfiguration struct {
	attachment *FileHandleSerialPortAttachment
}

// NewVirtioConsoleDeviceSerialPortConfiguration returns one.
func NewVirtioConsoleDeviceSerialPortConfiguration(attachment SerialPortAttachment) (*VirtioConsoleDeviceSerialPortConfiguration, error) {
	return &VirtioConsoleDeviceSerialPortConfiguration{attachment.(*FileHandleSerialPortAttachment)}, nil
}
