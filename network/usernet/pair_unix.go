//go:build unix

package usernet

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// socketBuffer holds a few of the largest frames. Datagrams of unix sockets are
// never lost: a writer waits when it is full.
const socketBuffer = 1 << 20

// Pair returns the two ends of a cable: one for New, and one for the VMM, which
// is the kind that both QEMU's dgram back-end and Virtualization.framework's
// VZFileHandleNetworkDeviceAttachment take: a connected datagram socket, one
// Ethernet frame a datagram.
func Pair() (net.Conn, *os.File, error) {
	fds, err := socketPair()
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair for the network: %w", err)
	}
	for _, fd := range fds {
		for _, opt := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
			// The kernel gives what it allows (net.core.wmem_max); its default
			// holds one frame of any size.
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, socketBuffer)
		}
	}
	ours := os.NewFile(uintptr(fds[0]), "network")
	theirs := os.NewFile(uintptr(fds[1]), "network of the machine")
	c, err := net.FileConn(ours) // a duplicate
	_ = ours.Close()
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("make a socket pair for the network: %w", err)
	}
	return c, theirs, nil
}
