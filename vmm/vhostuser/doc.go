// Package vhostuser is the back-end of the vhost-user protocol: it lets a virtio
// device of a VMM live in this process, without root and without a kernel driver.
//
// The package keeps three things apart:
//
//   - the protocol: Message is what goes over the socket, Server answers it;
//   - the ring: Queue is one split virtqueue in the guest's memory;
//   - the device: whoever implements Device (vmm/vsock does).
//
// Everything that is read from the guest's memory or from the socket is taken
// for hostile: addresses and lengths are checked against the memory table, loops
// are bounded by the queue's size, and a fault stops the ring, never the process.
//
// Sources: QEMU's docs/interop/vhost-user.rst and virtio 1.2, section 2.7.
package vhostuser
