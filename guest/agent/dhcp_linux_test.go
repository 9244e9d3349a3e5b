package agent

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"github.com/vishvananda/netlink"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// dhcpServer gives out what it is set to.
type dhcpServer struct {
	mu   sync.Mutex
	give []dhcpv4.Modifier
}

func (s *dhcpServer) set(give ...dhcpv4.Modifier) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.give = give
}

func (s *dhcpServer) handle(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := dhcpv4.MessageTypeOffer
	if m.MessageType() == dhcpv4.MessageTypeRequest {
		kind = dhcpv4.MessageTypeAck
	}
	server := net.IPv4(10, 9, 0, 1)
	give := append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(server), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server))}, s.give...)
	r, err := dhcpv4.NewReplyFromRequest(m, give...)
	if err != nil {
		return
	}
	_, _ = conn.WriteTo(r.ToBytes(), peer)
}

func address(last byte) dhcpv4.Modifier { return dhcpv4.WithYourIP(net.IPv4(10, 9, 0, last)) }

// An interface gets its address from a server, keeps it, and takes another if it is given one.
func TestDHCP(t *testing.T) {
	machine, own := newNamespace(t), newNamespace(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	m := handleAt(t, machine)
	if err := m.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "virtio0", HardwareAddr: mac}, PeerName: "cable"}); err != nil {
		t.Fatal(err)
	}
	cable, err := m.LinkByName("cable")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.AddrAdd(cable, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 1), Mask: net.CIDRMask(24, 32)}}); err != nil {
		t.Fatal(err)
	}
	if err := m.LinkSetUp(cable); err != nil {
		t.Fatal(err)
	}
	s := &dhcpServer{}
	s.set(address(7), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IPv4(10, 9, 0, 1)), dhcpv4.WithDNS(net.IPv4(10, 9, 0, 3), net.IPv4(10, 9, 0, 4)),
		dhcpv4.WithDomainSearchList("lan.example", "example"), dhcpv4.WithLeaseTime(3600))
	server, err := inNamespace(machine, func() (*server4.Server, error) { return server4.NewServer("cable", nil, s.handle) })
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve() }()
	t.Cleanup(func() { _ = server.Close() })

	resolv := filepath.Join(t.TempDir(), "resolv")
	if err := os.WriteFile(resolv, []byte("# nothing yet, but much longer than what will be there, by far: it is to be cut\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := &container{id: "c", files: files{paths: map[string]string{"/etc/resolv.conf": resolv}}}
	list, err := parseInterfaces([]*guestv1.Interface{{Mac: mac, Name: "eth0", Mtu: 1500, Dhcp: true, ResolvConf: "/etc/resolv.conf"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.setInterfaces(t.Context(), list, machine, own); err != nil {
		t.Fatal(err)
	}
	closed := false
	t.Cleanup(func() {
		if !closed {
			c.leases[0].close()
		}
	})
	h := handleAt(t, own)
	state := func() string {
		t.Helper()
		link, err := h.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := h.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		routes, err := h.RouteList(link, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, a := range addrs {
			out = append(out, a.IPNet.String())
		}
		for _, r := range routes {
			if r.Gw != nil {
				out = append(out, r.Dst.String()+" by "+r.Gw.String())
			}
		}
		b, err := os.ReadFile(resolv)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(append(out, string(b)), "; ")
	}
	const want = "10.9.0.7/24; 0.0.0.0/0 by 10.9.0.1; nameserver 10.9.0.3\nnameserver 10.9.0.4\nsearch lan.example example\n"
	if got := state(); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}

	// When half of the lease is over it is asked for again, and what has changed is set.
	d := c.leases[0]
	s.set(address(8), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(3600))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var done sync.WaitGroup
	done.Go(func() {
		d.keep(ctx, lease{}, 10*time.Millisecond, func(l lease) error {
			defer cancel()
			link, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			return setLease(h, link, l)
		})
	})
	done.Wait()
	if got := state(); !strings.HasPrefix(got, "10.9.0.8/24;") {
		t.Errorf("renewed: %s", got)
	}
	d.close()
	closed = true
}

// What a server says that makes no sense is refused.
func TestLeases(t *testing.T) {
	for name, tt := range map[string]struct {
		give []dhcpv4.Modifier
		ok   bool
		conf string
	}{
		"good":           {[]dhcpv4.Modifier{address(1), dhcpv4.WithNetmask(net.CIDRMask(24, 32))}, true, ""},
		"no address":     {[]dhcpv4.Modifier{dhcpv4.WithNetmask(net.CIDRMask(24, 32))}, false, ""},
		"broadcast":      {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4bcast), dhcpv4.WithNetmask(net.CIDRMask(24, 32))}, false, ""},
		"loopback":       {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4(127, 0, 0, 1)), dhcpv4.WithNetmask(net.CIDRMask(24, 32))}, false, ""},
		"no mask":        {[]dhcpv4.Modifier{address(1)}, false, ""},
		"a mask of bits": {[]dhcpv4.Modifier{address(1), dhcpv4.WithNetmask(net.IPMask{255, 0, 255, 0})}, false, ""},
		"a domain, and lines in others": {[]dhcpv4.Modifier{address(1), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithOption(dhcpv4.OptDomainSearch(
			&rfc1035label.Labels{Labels: []string{"ok.example", "bad\nnameserver 6.6.6.6"}}))}, true, "search ok.example\n"},
		"many nameservers": {[]dhcpv4.Modifier{address(1), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithDNS(net.IPv4(1, 1, 1, 1), net.IPv4(2, 2, 2, 2), net.IPv4(3, 3, 3, 3), net.IPv4(4, 4, 4, 4))},
			true, "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n"},
	} {
		ack, err := dhcpv4.New(tt.give...)
		if err != nil {
			t.Fatal(err)
		}
		l, err := leaseOf(ack)
		if (err == nil) != tt.ok || err == nil && string(l.resolvConf()) != tt.conf {
			t.Errorf("%s: %v, %q", name, err, l.resolvConf())
		}
	}
}
