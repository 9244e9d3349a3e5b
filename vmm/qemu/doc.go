// Package qemu drives virtual machines with QEMU, one process each, as an
// ordinary user: vsock is served by this process over vhost-user (vmm/vsock),
// disks are raw files, and nothing of the host is given to the guest besides.
//
// The VMM never outlives this process: the kernel kills it (PR_SET_PDEATHSIG).
package qemu
