// Package proto is what the conformance suite and its guest have agreed on.
package proto

import "github.com/applevm/applevm/internal/filework"

// Ports that the guest listens on.
const (
	// ControlPort takes one Request and gives one Response, both JSON, per connection.
	ControlPort = 2000 + iota
	// EchoPort sends back what it gets; after the end of input it ends its output.
	EchoPort
	// SinkPort reads a SinkRequest (big-endian) and what it announces, and sends
	// a Sum as JSON.
	SinkPort
	// SourcePort reads a length (64 bits, big-endian) and sends as many bytes of Pattern.
	SourcePort
	// HoldPort never reads and never closes.
	HoldPort
	// DropPort closes each connection at once, unread.
	DropPort
	// NobodyPort has no listener.
	NobodyPort
)

// ReadyPort is the host's port that the guest dials when all its ports listen.
const ReadyPort = 3000

// Operations.
const (
	OpPowerOff = "poweroff" // never answers
	OpPanic    = "panic"    // never answers
	OpDial     = "dial"     // connects to the host's Port and echoes
	OpDisks    = "disks"    // lists the virtio-blk disks
	OpWrite    = "write"    // writes Data to the start of Disk, and flushes it
	OpRead     = "read"     // reads Length bytes from the start of Disk
	OpFlood    = "flood"    // writes Length bytes to the console
	OpTicks    = "ticks"    // how far the guest's own counter has come
	OpShare    = "share"    // uses Share in all ways and lists its files
	OpReadOnly = "readonly" // tries to change Share
	OpFiles    = "files"    // does package filework's work in Share
	OpNIC      = "nic"      // brings up the interface with the address MAC, and sends back each frame of EtherType
)

// Request is what the control port takes.
type Request struct {
	Op     string
	Port   uint32 `json:",omitempty"`
	Disk   string `json:",omitempty"`
	Share  string `json:",omitempty"` // its tag
	Data   []byte `json:",omitempty"`
	Length int    `json:",omitempty"`
	MAC    string `json:",omitempty"`
}

// Response is what the control port gives.
type Response struct {
	Error string `json:",omitempty"`
	Disks []Disk `json:",omitempty"`
	Data  []byte `json:",omitempty"`
	Ticks int64  `json:",omitempty"`
	// Files are as package internal/treelist has them.
	Files []string `json:",omitempty"`
	MTU   int      `json:",omitempty"`
	// Times are those of OpFiles.
	Times filework.Times
}

// EtherType marks the frames of OpNIC (IEEE 802's first type for local
// experiments). What the guest sends back has the two addresses exchanged.
const EtherType = 0x88b5

// Disk is one disk as the guest sees it.
type Disk struct {
	Serial   string
	Size     int64
	ReadOnly bool
}

// SinkRequest announces data.
type SinkRequest struct {
	Length int64
	// Hash asks for the digest, which takes its time under emulation.
	Hash bool
}

// Sum is what the sink has received.
type Sum struct {
	Bytes  int64
	SHA256 []byte
}

// Pattern fills p with the bytes that stand at offset in an endless stream
// which shows misplaced, lost and doubled bytes.
func Pattern(p []byte, offset int64) {
	for i := range p {
		at := uint64(offset + int64(i))
		// Each block of 8 is a mix of its number (SplitMix64's multiplier).
		x := (at/8 + 1) * 0x9e3779b97f4a7c15
		x ^= x >> 29
		p[i] = byte(x >> (8 * (at % 8)))
	}
}
