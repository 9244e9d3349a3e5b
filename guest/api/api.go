// Package api holds what host and guest have agreed on besides the messages in
// guest/api/v1: version, vsock ports, and the bounds that each side enforces on
// what the other sends.
//
// At boot the agent dials the host's ControlPort and serves ttrpc on that one
// connection; the host is the client. Readiness is thereby pushed, never polled.
// For each of a process's stdio streams the agent dials StreamPort (package
// guest/stream says what goes over it).
package api

// Version of the contract. It changes when an agent of the previous version
// could not serve the host any more.
const Version = 9

// vsock ports on the host (CID 2) that the agent dials.
const (
	ControlPort = 1024
	StreamPort  = 1025
)

// ForwardPort is the vsock port on which the agent takes connections to TCP ports
// of the machine's loopback addresses. Both directions carry frames as package
// guest/stream has them; the host's first frame is the target: ForwardIPv4 or
// ForwardIPv6 and the port, big-endian; or ForwardUnix, a length of 16 bits, big-endian,
// and so many bytes: a container's ID, NUL, and a socket's path in that container. If nobody
// accepts there the agent closes the connection without a frame.
const (
	ForwardPort = 1026
	ForwardUnix = 1
	ForwardIPv4 = 4
	ForwardIPv6 = 6
)

// DiskMount is the type of a mount in a container's spec whose source is the ID of a disk with
// an ext4 file system, followed by DiskReadOnly if it is not to be written. The guest mounts it
// and binds its root directory.
const (
	DiskMount    = "applevm.disk"
	DiskReadOnly = ":ro"
)

// SocketPort is the host's vsock port on which the agent connects to sockets of the host
// that a container mounts. Both directions carry frames; the agent's first is the socket's
// number, 16 bits, big-endian. If nobody accepts there the host closes the connection.
const SocketPort = 1027

// SocketMount is the type of a mount in a container's spec that is a socket of the host. Its
// source is NUMBER:MODE:UID:GID, the mode in octal: what the container's has.
const SocketMount = "applevm.socket"

// ReadyLine starts the line that the agent prints on the console before all
// else. The bench takes it as the end of the boot, the accelerator probe as proof
// that guests run.
const ReadyLine = "applevm-agent"

// UpperDir is the directory of a writable disk in which the guest keeps a
// container's changes, as overlayfs writes them. The host reads them there.
const UpperDir = "upper"

// ShareMount is the type of a mount in a container's spec whose source is the tag of
// a directory that the host shares, or such a tag, a slash and a file in it. The guest
// binds it.
const ShareMount = "virtiofs"

// CopyUpOption of such a mount says that it is a new volume: what the root file system has in
// its place is copied into it before it is mounted, if it is still empty.
const CopyUpOption = "applevm.copy-up"

// Limits that the receiving side enforces.
const (
	// MaxSpec is the longest OCI spec, in bytes.
	MaxSpec = 2 << 20
	// MaxFile is the longest File.content, in bytes.
	MaxFile = 1 << 20
	// MaxErrorText is the longest error text, in bytes, that the host takes
	// over from a guest; the rest is cut.
	MaxErrorText = 4 << 10
	// MaxStats is the longest StatsResponse.stats, in bytes. It is a few hundred
	// and some for each disk and huge page size.
	MaxStats = 64 << 10
	// MaxInterfaces is how many network interfaces one container may have,
	// MaxInterfaceEntries how many addresses and how many routes one of them.
	MaxInterfaces       = 16
	MaxInterfaceEntries = 256
	// MaxListeners is the most listeners that one WaitListenersResponse tells of.
	MaxListeners = 256
	// MaxSockets is how many sockets of the host a container may mount, and how many of
	// its own may be published on the host.
	MaxSockets = 64
	// MaxSocketTarget is the longest ForwardUnix target, in bytes.
	MaxSocketTarget = 4<<10 + 256
	// MaxForwarded is how many connections the agent forwards at a time.
	MaxForwarded = 1024
	// MaxWatches is how many files one WaitWatchesResponse names.
	MaxWatches = 128 << 10
	// MaxWatchedPaths is how many bytes of paths one has.
	MaxWatchedPaths = 2 << 20
	// MaxFileEvents is how many events one RaiseFileEventsRequest has, MaxFileName the
	// longest FileEvent.name, in bytes (NAME_MAX).
	MaxFileEvents = 256
	MaxFileName   = 255
	// MaxFileData is the most, in bytes, that one FileRequest reads or writes.
	MaxFileData = 256 << 10
	// MaxFileEntries is the most entries of a directory in one FileResponse.
	MaxFileEntries = 4 << 10
	// MaxFileRequests is how many FileRequests the agent serves at a time.
	MaxFileRequests = 16
	// MaxEvents is the most containers of which one WaitEventsResponse tells.
	MaxEvents = 1 << 10
)
