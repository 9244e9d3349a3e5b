// Package vz drives machines with macOS's Virtualization.framework, through
// github.com/Code-Hex/vz/v3.
//
// What a machine becomes is decided in plan.go, which builds and is tested
// everywhere; the rest, in the files whose names end in _framework.go, translates it into
// calls of the framework: it builds for macOS with cgo, and with the tag vzsim, on any
// host, against a stand-in (internal/vzsim). The framework runs a machine for as long as the process lives that
// made it; no process of its own belongs to the machine, so its PID is this one's.
//
// Each call that the framework answers by a completion handler has a deadline: some of
// them (a connection to a port where nobody listens) may never be answered.
package vz
