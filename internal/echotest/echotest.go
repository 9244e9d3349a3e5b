// Package echotest is a server for tests of networks.
package echotest

import (
	"io"
	"net"
	"testing"
)

// maxDatagram is longer than any datagram.
const maxDatagram = 64 << 10

// Serve serves TCP and UDP on one port of an address of the host, until the test
// ends: it gives back what it gets, and ends a connection when that has ended.
func Serve(t testing.TB, addr string) (port uint16) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
		if err != nil {
			t.Fatal(err)
		}
		at := l.Addr().(*net.TCPAddr).AddrPort()
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			_ = l.Close() // the same UDP port is somebody else's
			continue
		}
		t.Cleanup(func() { _, _ = l.Close(), u.Close() })
		go accept(l)
		go answer(u)
		return at.Port()
	}
	t.Fatal("no port is free for both TCP and UDP")
	return 0
}

func accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func answer(u *net.UDPConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = u.WriteToUDPAddrPort(buf[:n], from)
	}
}
