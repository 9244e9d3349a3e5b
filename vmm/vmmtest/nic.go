package vmmtest

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

// makeNICs returns two network interfaces and the host's ends of their cables.
func makeNICs(t *testing.T) (cables []net.Conn, nics []vmm.NIC) {
	t.Helper()
	for i, mtu := range []int{1500, 65520} {
		syscall.ForkLock.RLock()
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err == nil {
			unix.CloseOnExec(fds[0])
			unix.CloseOnExec(fds[1])
		}
		syscall.ForkLock.RUnlock()
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
		}
		ours, theirs := os.NewFile(uintptr(fds[0]), "cable"), os.NewFile(uintptr(fds[1]), "cable")
		c, err := net.FileConn(ours)
		_ = ours.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = c.Close(), theirs.Close() })
		cables = append(cables, c)
		nics = append(nics, vmm.NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)}, MTU: mtu, File: theirs})
	}
	return cables, nics
}

// testNICs sends frames of every size to each of the guest's interfaces, which
// come back on the same cable.
func testNICs(t *testing.T, g *Guest, cables []net.Conn, nics []vmm.NIC) {
	host := net.HardwareAddr{2, 0, 0, 0, 1, 0}
	for i, n := range nics {
		resp, err := g.Call(timeout(t), proto.Request{Op: proto.OpNIC, MAC: n.MAC.String()})
		if err != nil {
			t.Fatal(err)
		}
		if resp.MTU != n.MTU {
			t.Errorf("%s: the guest has MTU %d, not %d", n.MAC, resp.MTU, n.MTU)
		}
		d, _ := timeout(t).Deadline()
		_ = cables[i].SetDeadline(d)
		for round, size := range []int{46, 1000, n.MTU, 46, n.MTU} {
			frame := append(append(append([]byte(nil), n.MAC...), host...), binary.BigEndian.AppendUint16(nil, proto.EtherType)...)
			frame = append(frame, make([]byte, size)...)
			proto.Pattern(frame[14:], int64(round))
			if _, err := cables[i].Write(frame); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 128<<10)
			for {
				k, err := cables[i].Read(got)
				if err != nil {
					t.Fatalf("%s: no frame of %d bytes came back: %v", n.MAC, size, err)
				}
				if k < 14 || binary.BigEndian.Uint16(got[12:]) != proto.EtherType {
					continue // the guest's kernel looks for neighbours
				}
				if !bytes.Equal(got[:6], host) || !bytes.Equal(got[6:12], n.MAC) || !bytes.Equal(got[14:k], frame[14:]) {
					t.Errorf("%s: of a frame of %d bytes came back %d others", n.MAC, len(frame), k)
				}
				break
			}
		}
	}
}
