//go:build (darwin && cgo) || vzsim

package vz

import (
	"testing"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vmmtest"
)

// TestConformance runs the suite for machines: on a Mac over the framework, elsewhere over
// its stand-in (make vz-sim).
func TestConformance(t *testing.T) {
	vmmtest.Run(t, vmmtest.Suite{Driver: func(testing.TB) vmm.Driver { return New() }, Shares: true})
}
