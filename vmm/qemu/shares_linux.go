package qemu

import (
	"context"
	"fmt"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/virtiofs"
)

var _ vmm.ShareWatcher = (*machine)(nil)

// WatchesPaths implements vmm.ShareWatcher.
func (m *machine) WatchesPaths() bool { return false }

// WatchShares implements vmm.ShareWatcher.
func (m *machine) WatchShares(files map[string]vmm.WatchedFiles) error {
	w, err := m.shareWatcher()
	if err == nil {
		err = w.WatchShares(files)
	}
	if err != nil {
		return fmt.Errorf("machine %s: watch what it shares: %w", m.cfg.Name, err)
	}
	return nil
}

// ShareChanges implements vmm.ShareWatcher.
func (m *machine) ShareChanges(ctx context.Context) (vmm.ShareChanges, error) {
	w, err := m.shareWatcher()
	if err != nil {
		return vmm.ShareChanges{}, err
	}
	return w.ShareChanges(ctx)
}

func (m *machine) shareWatcher() (*virtiofs.Watcher, error) {
	if _, _, err := m.running(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.watcher, nil
}
