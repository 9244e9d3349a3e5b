// Package agent serves the guest's half of applevm's contract (package
// guest/api): containerd's task service for containers and their processes, and
// applevm.guest.v1.Guest for the machine.
//
// Containers are run by runc's libcontainer; this package puts their root file
// systems together from the machine's disks, carries their stdio over streams
// (package guest/stream) and keeps their state. A machine may hold any number of
// containers. Booting the machine and the process of PID 1 are cmd/applevm-agent's.
//
// The program that uses this package re-executes itself as a container's first
// process: it must import libcontainer/nsenter and hand over to
// libcontainer.Init when its first argument is "init".
package agent
