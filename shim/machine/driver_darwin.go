//go:build cgo

package machine

import (
	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vz"
)

var drivers = map[string]func(config.Config) (vmm.Driver, error){
	"vz": func(config.Config) (vmm.Driver, error) { return vz.New(), nil },
}
