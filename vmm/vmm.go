// Package vmm says what a virtual machine is to the rest of applevm: a small
// interface that every driver (vmm/qemu on Linux, vmm/vz on macOS) implements,
// and the plain configuration such a machine is made from.
//
// The package holds no driver and no policy. What a container needs is decided
// by the shim, which builds a Config; a driver only translates it.
package vmm

import (
	"context"
	"errors"
	"net"
	"os"
	"time"
)

// HostCID is the vsock context identifier by which a guest reaches its host
// (VMADDR_CID_HOST, virtio 1.2 section 5.10.4).
const HostCID = 2

// MaxDiskID is the length, in bytes, of the longest Disk.ID: virtio-blk's
// serial number field (VIRTIO_BLK_ID_BYTES, virtio 1.2 section 5.2.6).
const MaxDiskID = 20

// MaxShareTag is the length, in bytes, of the longest Share.Tag (virtio 1.2 section
// 5.11.4).
const MaxShareTag = 36

// Errors that Machine's methods return, wrapped with what they concern.
var (
	// ErrNotRunning is returned by calls that need a running machine.
	ErrNotRunning = errors.New("machine is not running")
	// ErrRefused is returned by Dial when nothing in the guest listens on the port.
	ErrRefused = errors.New("connection refused by the guest")
	// ErrInsufficientMemory is returned by Start when the host cannot give the
	// machine the memory that Config asks for.
	ErrInsufficientMemory = errors.New("not enough memory on the host")
)

// Config describes one machine. It is plain data: it can be printed, compared
// and validated before anything is started.
type Config struct {
	// Name tells machines apart in logs and process listings, for instance
	// "default/web". It has no other meaning.
	Name string
	// Dir is an existing private directory (mode 0700) for the driver's own
	// sockets and files. The caller makes and removes it; the driver leaves
	// nothing in it once Wait has returned. Keep it short: unix socket paths
	// hold 104 bytes on macOS.
	Dir string
	// Arch is the guest's architecture, "amd64" or "arm64"; empty is the
	// host's. A driver that cannot emulate takes no other.
	Arch string
	// CPUs is the number of virtual CPUs, at least 1.
	CPUs int
	// Memory is the size of the guest's memory in bytes, a multiple of 1 MiB.
	Memory int64
	// Kernel is the path of an uncompressed kernel: an ELF vmlinux with a PVH
	// entry for amd64, an Image for arm64.
	Kernel string
	// Initrd is the path of the initramfs.
	Initrd string
	// Cmdline is added to the kernel parameters that the driver needs itself.
	Cmdline []string
	// Disks are attached as virtio-blk devices from the start. The guest finds
	// each by its ID, never by its order.
	Disks []Disk
	// Shares are directories of the host, each a virtio file system device. A
	// driver opens them in Start: they need not be at their paths any longer.
	Shares []Share
	// NICs are attached as virtio-net devices from the start. The guest finds
	// each by its MAC address.
	NICs []NIC
	// NetNS, if it is not nil, is the network namespace in which the VMM's process
	// runs. A driver may lack this.
	NetNS *os.File
	// Root, if it is not nil, is a directory that the VMM's process makes its root once
	// it has opened its files. A driver may lack this.
	Root *os.File
	// Translator shares the driver's translator of programs (see Translator) with the
	// guest, under the tag TranslatorTag.
	Translator bool
	// Restore, if it is not empty, is a directory that Saver.Save has made of a machine with the
	// same configuration but for Name and Dir: Start brings that machine back, paused, and boots nothing. A driver
	// may lack this.
	Restore string
	// Nested gives the guest the processor's virtualization, so that it can run
	// machines of its own. A driver may lack this, or find that the host does.
	Nested bool
}

// NIC is one network interface.
type NIC struct {
	// MAC is the guest's address: 6 bytes, unicast, unique within the machine.
	MAC net.HardwareAddr
	// MTU is the longest packet in bytes, without the Ethernet header, that the
	// guest is told: MinMTU to MaxMTU.
	MTU int
	// File is one end of a pair of connected datagram sockets (AF_UNIX), over
	// which frames go, one Ethernet frame a datagram, with nothing before it.
	// Start takes a duplicate: the file stays the caller's.
	File *os.File
	// NAT says that there is no File: the VMM itself connects the interface to a network with a DHCP server,
	// behind the host's addresses. A driver may lack this (NATer).
	NAT bool
	// Tap says that File is a tap device instead, with virtio-net headers (Linux's
	// IFF_VNET_HDR). A driver may lack this.
	Tap bool
}

// Bounds of NIC.MTU: IPv4's least (RFC 791) and virtio-net's field (virtio 1.2,
// section 5.1.4).
const (
	MinMTU = 68
	MaxMTU = 65535
)

// Disk is one raw disk image.
type Disk struct {
	// ID is the serial number that the guest sees in /sys/block/*/serial:
	// 1 to MaxDiskID bytes of [A-Za-z0-9_.-], unique within the machine.
	ID string
	// Path is the image file on the host; its size must be a multiple of 512.
	Path string
	// ReadOnly disks may be attached to many machines at once.
	ReadOnly bool
}

// Share is a directory of the host, or some of its files, that the guest can mount as a virtiofs.
type Share struct {
	// Tag is what the guest mounts: 1 to MaxShareTag bytes of [A-Za-z0-9_.-],
	// unique within the machine.
	Tag string
	// Path is the directory on the host. The guest can reach what is in it,
	// mounts included, and nothing else.
	Path string
	// Files, where Path is empty, are the paths of regular files: the share is a
	// directory that holds these and nothing else, by the names "0", "1" and so on.
	Files []string
	// ReadOnly shares cannot be changed by the guest.
	ReadOnly bool
	// OneMount leaves out what is mounted below Path: the guest may not go there (EACCES). A
	// driver may lack this.
	OneMount bool
}

// Machine is one virtual machine, from its making until its end. All methods
// are safe for concurrent use. A machine runs once: after its end it is only
// good for Wait, Err and Console.
type Machine interface {
	// Start boots the machine and returns once the VMM runs the guest; the
	// guest itself may be far from ready. It fails with an error that names
	// the cause (ErrInsufficientMemory among them); nothing is left then.
	// Canceling ctx afterwards has no effect on the machine.
	Start(ctx context.Context) error

	// Dial connects to a vsock port of the guest. It returns ErrRefused when
	// nobody listens there and ctx's error when the guest does not answer.
	// The connection may implement CloseWrite() error, but need not (vz's
	// connections do not).
	Dial(ctx context.Context, port uint32) (net.Conn, error)

	// Listen accepts connections that the guest makes to the host's vsock
	// port. It may be called before Start, so that no guest is ever too early.
	// The listener ends with the machine.
	Listen(port uint32) (net.Listener, error)

	// Pause stops all virtual CPUs; Resume lets them run on.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error

	// Stop ends the VMM in an orderly way: what the guest has written and
	// flushed is on its disks. It does not ask the guest to shut down first;
	// the agent is asked for that. If ctx ends before the VMM did, it is killed.
	Stop(ctx context.Context) error

	// Kill ends the machine at once and returns when it is gone.
	Kill() error

	// Done is closed when the machine has ended, whatever the reason, and
	// everything the driver held (process, sockets, files) is released.
	Done() <-chan struct{}

	// Err tells, after Done, why the machine ended: nil after Stop, Kill or a
	// power-off by the guest; otherwise an error that carries the last lines
	// of the console (a kernel panic, a VMM killed from outside).
	Err() error

	// PID is the host process in which the guest runs: the VMM's, or the
	// caller's own where the VMM is no process of its own. 0 before Start.
	PID() int

	// Console returns the last output, at most 64 KiB, of the guest's console.
	Console() []byte
}

// Starver is a Machine that knows how long its guest has had no processor of the host
// although it could have used one, in all since Start. Deadlines for a guest leave
// that out.
type Starver interface {
	Starved() time.Duration
}

// SubmountSharer is a Driver whose shares may show what is mounted below their directories whatever
// Share.OneMount says.
type SubmountSharer interface {
	SharesSubmounts() bool
}

// NATer is a Driver that may have NIC.NAT for containers.
type NATer interface {
	HasNAT() bool
}

// Driver makes machines.
type Driver interface {
	// Name is the driver's short name, for instance "qemu".
	Name() string
	// New checks cfg and returns a machine that is not started yet.
	New(cfg Config) (Machine, error)
}
