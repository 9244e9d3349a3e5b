//go:build (darwin && cgo) || vzsim

package vz

import (
	"context"
	"fmt"

	"github.com/applevm/applevm/vmm"
)

var _ vmm.ShareWatcher = (*machine)(nil)

// WatchesPaths implements vmm.ShareWatcher: the framework serves the shares.
func (m *machine) WatchesPaths() bool { return m.shares.WatchesPaths() }

// WatchShares implements vmm.ShareWatcher.
func (m *machine) WatchShares(files map[string]vmm.WatchedFiles) error {
	if err := m.shares.WatchShares(files); err != nil {
		return fmt.Errorf("machine %s: watch what it shares: %w", m.plan.Name, err)
	}
	return nil
}

// ShareChanges implements vmm.ShareWatcher.
func (m *machine) ShareChanges(ctx context.Context) (vmm.ShareChanges, error) {
	return m.shares.ShareChanges(ctx)
}
