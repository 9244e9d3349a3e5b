package machine

import (
	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/vmm"
)

var drivers = map[string]func(config.Config) (vmm.Driver, error){}
