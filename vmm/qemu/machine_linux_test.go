package qemu_test

import (
	"testing"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/qemu"
	"github.com/applevm/applevm/vmm/vmmtest"
)

func newDriver(t testing.TB) vmm.Driver {
	t.Helper()
	d, err := qemu.New(qemu.Options{Accel: "tcg", CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestConformance(t *testing.T) {
	vmmtest.Run(t, vmmtest.Suite{Driver: newDriver, OwnProcess: true, HalfClose: true, Shares: true})
}
