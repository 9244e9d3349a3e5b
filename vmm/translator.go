package vmm

import "errors"

// TranslatorTag is the tag of the share that Config.Translator adds.
const TranslatorTag = "translator"

// TranslatorSocket is where a translator that has a daemon looks for its socket, in a container.
const TranslatorSocket = "/run/rosettad/rosetta.sock"

// ErrNoTranslator is what Translates returns, wrapped with what to do, where the host could have a
// translator and has none.
var ErrNoTranslator = errors.New("there is no translator on the host")

// Translation is a program that runs the programs of another architecture in guests.
type Translation struct {
	// Arch is that architecture, "amd64" or "arm64"; empty if there is no translator for such a
	// host.
	Arch string
	// Program is its file in the share: an interpreter for binfmt_misc.
	Program string
	// Daemon is a file in the share that may be there: it keeps translations for later. "Daemon
	// daemon DIR" serves the socket DIR/uds/rosetta.sock. Empty if there is none.
	Daemon string
}

// Translator is a Driver whose host may have a translator: Apple's Rosetta, QEMU's user mode emulation. A
// driver may lack this.
type Translator interface {
	// Translates tells which. It returns the architecture and ErrNoTranslator if it has to be
	// installed first.
	Translates() (Translation, error)
}
