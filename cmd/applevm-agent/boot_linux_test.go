//go:build cgo

package main

import "testing"

// The agent must not mount over the root directory of who tries it.
func TestBootRefusesWhatIsNoMachine(t *testing.T) {
	if err := inInitramfs(); err == nil {
		t.Error("the root directory of this host was taken for an initramfs's")
	}
}
