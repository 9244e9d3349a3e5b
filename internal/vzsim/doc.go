// Package vz is a stand-in for github.com/Code-Hex/vz/v3, under its import path: that
// part of its API that the driver vmm/vz uses, over QEMU machines. With it the driver,
// unchanged, runs on Linux.
//
// It has the framework's awkward sides: a connection to a guest that does not answer
// never calls back, connections have no CloseWrite, a machine starts once, a listener's
// Accept does not notice its end, file descriptors must stay open, and nothing can be
// plugged into a running machine.
//
// It is a module of its own, which takes the real one's place in a go.mod that is made
// for it (make vz-sim).
package vz
