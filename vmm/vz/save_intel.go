//go:build darwin && cgo && !arm64

package vz

import (
	"context"
	"errors"

	"github.com/Code-Hex/vz/v3"
)

var errIntel = errors.New("machines are saved and restored by Macs with Apple silicon only")

func saveState(context.Context, *vz.VirtualMachine, string) error { return errIntel }

func restoreState(context.Context, *vz.VirtualMachine, string) error { return errIntel }
