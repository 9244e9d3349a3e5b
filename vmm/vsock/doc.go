// Package vsock is a virtio socket device (virtio 1.2 section 5.10, stream
// sockets) that lives in this process: connections between the host and one
// guest are net.Conn here and AF_VSOCK in the guest, and no kernel driver, root
// or socket file is involved. vmm/vhostuser puts it into a VMM.
//
// Each stream has a bounded receive buffer, announced to the guest as its
// credit; a guest that sends more loses the stream. A stream whose reader is
// slow, on either side, holds back nobody else.
package vsock
