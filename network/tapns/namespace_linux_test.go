package tapns

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TestJoin sends frames through an interface and the tap device that it is joined
// to, both ways.
func TestJoin(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root: run this with sudo")
	}
	s, err := New(2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	outside, err := New(0) // where the other end of the cable is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(outside.Close)
	in, out := handle(t, s), handle(t, outside)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	must(t, in.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", HardwareAddr: mac, MTU: 1400}, PeerName: "cable", PeerNamespace: netlink.NsFd(outside.NS.Fd()),
	}))
	eth0, err := in.LinkByName("eth0")
	must(t, err)
	cable, err := out.LinkByName("cable")
	must(t, err)
	must(t, errors.Join(in.LinkSetUp(eth0), out.LinkSetUp(cable)))
	addr, _ := netlink.ParseAddr("10.4.0.5/24")
	must(t, in.AddrAdd(eth0, addr))
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	must(t, in.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: all, Gw: net.ParseIP("10.4.0.1")}))

	got, err := s.Join(2)
	must(t, err)
	if len(got) != 1 {
		t.Fatalf("joined %v", got)
	}
	i := got[0]
	var text []string
	for _, a := range i.Addresses {
		text = append(text, a.String())
	}
	for _, r := range i.Routes {
		text = append(text, r.Destination.String()+" by "+r.Gateway.String())
	}
	if s := strings.Join(text, ", "); i.Name != "eth0" || i.MTU != 1400 || i.MAC.String() != mac.String() || s != "10.4.0.5/24, 0.0.0.0/0 by 10.4.0.1" {
		t.Errorf("%+v: %s", i, s)
	}

	// A frame from outside comes out of the tap device, behind a virtio-net header.
	packet := packetSocket(t, outside, cable)
	peer := cable.Attrs().HardwareAddr
	frame := append(append(append([]byte(nil), mac...), peer...), 0x88, 0xb5)
	frame = append(frame, bytes.Repeat([]byte("x"), 100)...)
	_, err = packet.Write(frame)
	must(t, err)
	if !await(t, s.Taps[0], frame, header) {
		t.Error("the frame from outside did not come to the tap device")
	}
	// And the other way.
	answer := append(append(append([]byte(nil), peer...), mac...), frame[12:]...)
	_, err = s.Taps[0].Write(append(make([]byte, header), answer...))
	must(t, err)
	if !await(t, packet, answer, 0) {
		t.Error("the frame of the tap device did not come out")
	}
	// One interface more than there are networks is an error.
	must(t, in.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "cable1"}))
	eth1, err := in.LinkByName("eth1")
	must(t, err)
	must(t, in.LinkSetUp(eth1))
	if _, err := s.Join(1); err == nil || !strings.Contains(err.Error(), "one more than the 1 networks") {
		t.Errorf("got %v", err)
	}
}

// header is the length of virtio-net's header (TUNGETVNETHDRSZ's default).
const header = 10

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func handle(t *testing.T, s *Namespace) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(s.NS.Fd()), unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

// packetSocket opens a packet socket on an interface of another namespace.
func packetSocket(t *testing.T, s *Namespace, l netlink.Link) *os.File {
	t.Helper()
	result := make(chan error)
	fd := -1
	go func() {
		// The thread is not unlocked, and ends.
		err := lockInto(s)
		if err == nil {
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0xb588, Ifindex: l.Attrs().Index}) // 0x88b5, big-endian
		}
		result <- err
	}()
	must(t, <-result)
	f := os.NewFile(uintptr(fd), fmt.Sprint("packet socket of ", l.Attrs().Name))
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func lockInto(s *Namespace) error {
	runtime.LockOSThread()
	return netns.Set(netns.NsHandle(s.NS.Fd()))
}

// await reads until the frame comes, behind so many bytes.
func await(t *testing.T, f *os.File, frame []byte, skip int) bool {
	t.Helper()
	must(t, f.SetReadDeadline(time.Now().Add(2*time.Minute)))
	buf := make([]byte, 70000)
	for {
		n, err := f.Read(buf)
		if err != nil {
			t.Log(err)
			return false
		}
		if n >= skip && bytes.Equal(buf[skip:n], frame) {
			return true
		}
	}
}
