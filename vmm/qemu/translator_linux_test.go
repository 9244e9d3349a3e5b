package qemu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/applevm/applevm/vmm"
)

// A translator is one file, which needs no libraries; a program that does is none.
func TestTranslator(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	name := filepath.Join(dir, userEmulators[hostArch()].name)
	d, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	translates := func() error {
		got, err := d.(vmm.Translator).Translates()
		if got.Arch != userEmulators[hostArch()].arch {
			t.Errorf("it is for %q", got.Arch)
		}
		return err
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := exec.LookPath("busybox") // Debian's busybox-static
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		program string
		ok      bool
	}{{sh, false}, {"/etc/passwd", false}, {busybox, true}} {
		_ = os.Remove(name)
		if err := os.Symlink(tt.program, name); err != nil {
			t.Fatal(err)
		}
		_ = os.Chmod(name, 0o755)
		if err := translates(); (err == nil) != tt.ok || err != nil && !errors.Is(err, vmm.ErrNoTranslator) {
			t.Errorf("%s: %v", tt.program, err)
		}
	}
	cfg := vmm.Config{Translator: true, Shares: []vmm.Share{{Tag: "data"}}}
	if err := addTranslator(&cfg); err != nil || len(cfg.Shares) != 2 || !cfg.Shares[1].ReadOnly || cfg.Shares[1].Path != "" || len(cfg.Shares[1].Files) != 1 {
		t.Errorf("%+v, %v", cfg.Shares, err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := addTranslator(&cfg); !errors.Is(err, vmm.ErrNoTranslator) {
		t.Errorf("without one: %v", err)
	}
}
