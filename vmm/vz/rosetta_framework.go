//go:build (darwin && cgo && arm64) || vzsim

package vz

import (
	"runtime"

	"github.com/Code-Hex/vz/v3"

	"github.com/applevm/applevm/vmm"
)

// rosettaArch is the architecture whose programs Rosetta runs: the other one, on the stand-in's host too.
var rosettaArch = map[string]string{"arm64": "amd64", "amd64": "arm64"}[runtime.GOARCH]

// translates implements vmm.Translator with Rosetta, which Apple silicon alone has. The names are
// those of Apple's files ("Running Intel Binaries in Linux VMs with Rosetta").
func translates() (vmm.Translation, error) {
	t := vmm.Translation{Arch: rosettaArch, Program: "rosetta", Daemon: "rosettad"}
	switch vz.LinuxRosettaDirectoryShareAvailability() {
	case vz.LinuxRosettaAvailabilityInstalled:
		return t, nil
	case vz.LinuxRosettaAvailabilityNotInstalled:
		return t, rosettaMissing{}
	default: // an older macOS, or a newer one that has dropped it
		return vmm.Translation{}, nil
	}
}

// rosettaMissing is a vmm.ErrNoTranslator.
type rosettaMissing struct{}

func (rosettaMissing) Error() string { return "install Rosetta with: softwareupdate --install-rosetta" }
func (rosettaMissing) Unwrap() error { return vmm.ErrNoTranslator }

// translatorShare is Rosetta's own share. What it has translated is kept for later where macOS
// offers that (14 and newer), by the daemon that the guest runs.
func translatorShare() (vz.DirectoryShare, error) {
	s, err := vz.NewLinuxRosettaDirectoryShare()
	if err != nil {
		return nil, explain("Rosetta", err)
	}
	if cache, err := vz.NewLinuxRosettaUnixSocketCachingOptions(vmm.TranslatorSocket); err == nil {
		s.SetOptions(cache)
	}
	return s, nil
}
