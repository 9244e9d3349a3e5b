// Package shim is the parent of what containerd asks a runtime for:
//
//	bootstrap  what the shim binary does when containerd runs it: start, delete, -info
//	task       the task service: one container, its processes, their events
//	plan       pure functions from a bundle to a machine and a request to its guest
//	machine    boots a plan's machine and owns the connections with its guest
//	stdio      carries the bytes of stdin, stdout and stderr
//	hooks      runs the OCI hooks, on the host
//	record     what a shim leaves on disk so that another process can clean up after it
//	trace      when the steps of a container's life happened
//
// The package itself holds no code. Nothing below it imports the snapshotter: they
// meet in package manifest.
package shim
