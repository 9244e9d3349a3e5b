package agent

import (
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// newNamespace makes a network namespace; the caller's stays as it is.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = before.Close() }()
	ns, err := netns.New() // and enters it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	if err := netns.Set(before); err != nil {
		t.Fatal(err)
	}
	return ns
}

func handleAt(t *testing.T, ns netns.NsHandle) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func TestInterfacesMove(t *testing.T) {
	machine, own := newNamespace(t), newNamespace(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	m := handleAt(t, machine)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "virtio0", HardwareAddr: mac}, PeerName: "cable"}
	if err := m.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	if cable, err := m.LinkByName("cable"); err != nil || m.LinkSetUp(cable) != nil { // else no route is usable
		t.Fatal(err)
	}
	list, err := parseInterfaces([]*guestv1.Interface{{
		Mac: mac, Name: "eth0", Mtu: 9000,
		Addresses: []string{"192.168.127.2/24", "fd61:7070:6c65:766d::2/64"},
		Routes: []*guestv1.Route{
			{Destination: "0.0.0.0/0", Gateway: "192.168.127.1"},
			{Destination: "::/0", Gateway: "fd61:7070:6c65:766d::1"},
			{Destination: "198.51.100.0/24"},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := (&container{}).setInterfaces(t.Context(), list, machine, own); err != nil {
		t.Fatal(err)
	}
	h := handleAt(t, own)
	link, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if a := link.Attrs(); a.MTU != 9000 || a.Flags&net.FlagUp == 0 || a.HardwareAddr.String() != mac.String() {
		t.Errorf("the interface is %+v", a)
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("%s is not to be used yet", a.IPNet)
		}
		got = append(got, a.IPNet.String())
	}
	if s := strings.Join(got, " "); s != "192.168.127.2/24 fd61:7070:6c65:766d::2/64" {
		t.Errorf("addresses are %s", s)
	}
	routes, err := h.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"0.0.0.0/0": "192.168.127.1", "::/0": "fd61:7070:6c65:766d::1", "198.51.100.0/24": "<nil>"}
	for _, r := range routes {
		if gw, ok := want[r.Dst.String()]; ok && gw == r.Gw.String() {
			delete(want, r.Dst.String())
		}
	}
	if len(want) > 0 {
		t.Errorf("routes %v are missing in %v", want, routes)
	}
	if l, err := m.LinkByName("virtio0"); err == nil {
		t.Errorf("the machine still has %v", l)
	}
	// Again, in the namespace where it is: for a container that shares the machine's.
	if err := (&container{}).setInterfaces(t.Context(), list, own, own); err != nil {
		t.Error(err)
	}
}

func TestParseInterfaces(t *testing.T) {
	mac := []byte{2, 0, 0, 0, 0, 9}
	for _, tt := range []struct {
		says string
		in   *guestv1.Interface
	}{
		{"no MAC address", &guestv1.Interface{Mac: mac[:5], Name: "eth0"}},
		{"1 to 15 bytes", &guestv1.Interface{Mac: mac}},
		{"1 to 15 bytes", &guestv1.Interface{Mac: mac, Name: "a-name-too-long-"}},
		{"MTU", &guestv1.Interface{Mac: mac, Name: "eth0", Mtu: 65536}},
		{"10.0.0.1", &guestv1.Interface{Mac: mac, Name: "eth0", Addresses: []string{"10.0.0.1"}}},
		{"elsewhere", &guestv1.Interface{Mac: mac, Name: "eth0", Routes: []*guestv1.Route{{Destination: "elsewhere"}}}},
		{"gateway", &guestv1.Interface{Mac: mac, Name: "eth0", Routes: []*guestv1.Route{{Destination: "::/0", Gateway: "x"}}}},
		{"addresses or routes", &guestv1.Interface{Mac: mac, Name: "eth0", Addresses: make([]string, 257)}},
	} {
		if _, err := parseInterfaces([]*guestv1.Interface{tt.in}); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: %v, which does not say %q", tt.in, err, tt.says)
		}
	}
	if _, err := parseInterfaces(make([]*guestv1.Interface, 17)); err == nil {
		t.Error("17 interfaces were taken")
	}
}
