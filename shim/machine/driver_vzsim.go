//go:build vzsim

package machine

import (
	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vz"
)

// All machines are made by the driver of macOS, over a stand-in for its framework
// (internal/vzsim).
func init() {
	drivers["vz"] = func(config.Config) (vmm.Driver, error) { return vz.New(), nil }
	drivers["qemu"] = drivers["vz"]
}
