package main

import (
	"fmt"
	"math/bits"
	"net"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

// echoFrames brings up the interface with the given address and sends back what
// comes in of proto.EtherType. It returns the interface's MTU.
func echoFrames(mac string) (mtu int, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return 0, err
	}
	for _, i := range all {
		if i.HardwareAddr.String() != mac {
			continue
		}
		if err := bringUp(i.Name); err != nil {
			return 0, err
		}
		const kind = proto.EtherType
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(bits.ReverseBytes16(kind)))
		if err != nil {
			return 0, fmt.Errorf("packet socket: %w", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bits.ReverseBytes16(kind), Ifindex: i.Index}); err != nil {
			return 0, fmt.Errorf("bind to %s: %w", i.Name, err)
		}
		go func() {
			buf := make([]byte, 128<<10)
			for {
				n, err := unix.Read(fd, buf)
				if err != nil || n < 14 {
					fmt.Println("packet socket:", n, err)
					return
				}
				var dst [6]byte
				copy(dst[:], buf[:6])
				copy(buf[:6], buf[6:12])
				copy(buf[6:12], dst[:])
				if _, err := unix.Write(fd, buf[:n]); err != nil {
					fmt.Println("send a frame:", err)
				}
			}
		}()
		return i.MTU, nil
	}
	return 0, fmt.Errorf("no interface has the address %s", mac)
}

func bringUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}
