package modules

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadAllWithoutModules(t *testing.T) {
	if err := LoadAll(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("no directory: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := LoadAll(dir); err != nil {
		t.Errorf("no *.ko file: %v", err)
	}
}

// TestLoadAllStopsAtTheFirstFailure gives files that no kernel takes for
// modules, so that nothing is loaded whatever the privileges.
func TestLoadAllStopsAtTheFirstFailure(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"01-second.ko", "00-first.ko"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("no module"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err := LoadAll(dir)
	if err == nil || !strings.Contains(err.Error(), "00-first.ko") || strings.Contains(err.Error(), "second") {
		t.Errorf("error %v does not name the first module only", err)
	}
}
