// Package vmmtest is the conformance suite for vmm.Driver: it boots a real guest
// and checks what vmm.Machine promises. Run is the suite; StartGuest gives the
// same guest to whoever wants to measure.
package vmmtest

import (
	"bytes"

	"github.com/applevm/applevm/guest/api"
)

func hasReadyLine(console []byte) bool { return bytes.Contains(console, []byte(api.ReadyLine)) }
