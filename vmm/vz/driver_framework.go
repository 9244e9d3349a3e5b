//go:build (darwin && cgo) || vzsim

package vz

import (
	"runtime"

	"github.com/applevm/applevm/vmm"
)

type driver struct{}

var (
	_ vmm.Translator     = driver{}
	_ vmm.SubmountSharer = driver{}
	_ vmm.NATer          = driver{}
)

// New returns the driver. The program must be signed with the entitlement
// com.apple.security.virtualization; without it machines fail to start.
func New() vmm.Driver { return driver{} }

// Name implements vmm.Driver.
func (driver) Name() string { return "vz" }

// SharesSubmounts implements vmm.SubmountSharer: the framework's file server crosses mount points.
func (driver) SharesSubmounts() bool { return true }

// HasNAT implements vmm.NATer with vmnet's, which needs no further entitlement.
func (driver) HasNAT() bool { return true }

// Translates implements vmm.Translator.
func (driver) Translates() (vmm.Translation, error) { return translates() }

// New implements vmm.Driver.
func (driver) New(cfg vmm.Config) (vmm.Machine, error) {
	p, err := newPlan(cfg, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	return newMachine(p), nil
}
