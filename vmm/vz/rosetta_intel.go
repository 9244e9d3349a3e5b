//go:build darwin && cgo && !arm64

package vz

import (
	"errors"

	"github.com/Code-Hex/vz/v3"

	"github.com/applevm/applevm/vmm"
)

func translates() (vmm.Translation, error) { return vmm.Translation{}, nil }

func translatorShare() (vz.DirectoryShare, error) {
	return nil, errors.New("a Mac with an Intel processor has no Rosetta")
}
