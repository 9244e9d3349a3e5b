package machine

import (
	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/qemu"
)

var drivers = map[string]func(config.Config) (vmm.Driver, error){
	"qemu": func(c config.Config) (vmm.Driver, error) {
		return qemu.New(qemu.Options{Binary: c.QEMU.Binary, Accel: c.QEMU.Accel, CacheDir: c.QEMU.CacheDir})
	},
}
