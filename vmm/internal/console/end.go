package console

import "bytes"

// What Linux prints before it leaves: kernel/panic.c and kernel/reboot.c, all
// with a level that "quiet" lets through.
var (
	panicText = []byte("Kernel panic - not syncing")
	leaveText = [][]byte{
		[]byte("reboot: Restarting system"),
		[]byte("reboot: Power down"),
		[]byte("reboot: System halted"),
	}
)

// An End is how a guest's kernel ended.
type End int

// Left is a power-off, reset or halt that the guest meant. Unknown is an end of which
// the console says nothing.
const (
	Unknown End = iota
	Left
	Panicked
)

// EndOf tells how a guest that has ended did so, by what its console holds. Without
// ACPI a reset, a power-off and a panic may be the same to its VMM. Of a panic, said is
// what led to it: after that comes a page of registers.
func EndOf(text []byte) (end End, said []byte) {
	left := -1
	for _, t := range leaveText {
		left = max(left, bytes.LastIndex(text, t))
	}
	switch panicked := bytes.LastIndex(text, panicText); {
	case panicked > left:
		line, _, _ := bytes.Cut(text[panicked:], []byte("\n"))
		return Panicked, text[:panicked+len(line)]
	case left < 0:
		return Unknown, text
	}
	return Left, text
}
