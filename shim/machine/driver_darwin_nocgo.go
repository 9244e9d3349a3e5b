//go:build darwin && !cgo

package machine

import (
	"errors"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/vmm"
)

var drivers = map[string]func(config.Config) (vmm.Driver, error){
	"vz": func(config.Config) (vmm.Driver, error) {
		return nil, errors.New("this shim was built without cgo, which Virtualization.framework needs: build it on a Mac with CGO_ENABLED=1")
	},
}
