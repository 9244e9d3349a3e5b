//go:build (darwin && cgo && arm64) || vzsim

package vz

import (
	"context"
	"errors"
	"fmt"

	"github.com/Code-Hex/vz/v3"
)

// saveState and restoreState are what Apple silicon alone has.
func saveState(ctx context.Context, vm *vz.VirtualMachine, path string) error {
	return await(ctx, saveTimeout, func() error { return explainSave(vm.SaveMachineStateToPath(path)) })
}

func restoreState(ctx context.Context, vm *vz.VirtualMachine, path string) error {
	return await(ctx, saveTimeout, func() error { return explainSave(vm.RestoreMachineStateFromURL(path)) })
}

func explainSave(err error) error {
	if errors.Is(err, vz.ErrUnsupportedOSVersion) || errors.Is(err, vz.ErrBuildTargetOSVersion) {
		return fmt.Errorf("%w: macOS 14 or newer is needed", err)
	}
	return err
}
