package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	// dhcpTimeout is how long a DHCP server may take to give an address.
	dhcpTimeout = 20 * time.Second
	// dhcpRetry is how soon a renewal that has failed is tried again.
	dhcpRetry = time.Minute
	// minLease keeps a server from having the agent ask all the time.
	minLease = time.Minute
	// maxNameservers is how many a resolv.conf takes (MAXNS of resolv.conf(5)).
	maxNameservers = 3
)

// dhcp keeps the address that a DHCP server has given to an interface (RFC 2131).
type dhcp struct {
	client *nclient4.Client
	cancel context.CancelFunc
	ns     netns.NsHandle // the interface's, closed by close
	done   sync.WaitGroup
}

// lease is what a server has given.
type lease struct {
	address     *net.IPNet
	gateway     net.IP // nil if there is none
	nameservers []net.IP
	domains     []string
	length      time.Duration
}

// startDHCP asks for an address for an interface, in the network namespace ns, and has it set by set, then
// and when it has become another. It lets go of the address by close, or with the machine.
func startDHCP(ctx context.Context, ns netns.NsHandle, name string, mac net.HardwareAddr, set func(lease) error) (*dhcp, error) {
	conn, err := inNamespace(ns, func() (net.PacketConn, error) { return nclient4.NewRawUDPConn(name, nclient4.ClientPort) })
	if err != nil {
		return nil, fmt.Errorf("open a socket for DHCP: %w", err)
	}
	client, err := nclient4.NewWithConn(conn, mac, nclient4.WithTimeout(time.Second), nclient4.WithRetry(int(dhcpTimeout/time.Second)))
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	d := &dhcp{client: client}
	l, err := d.ask(ctx)
	if err == nil {
		err = set(l)
	}
	if err != nil {
		_ = client.Close()
		return nil, fmt.Errorf("get an address by DHCP: %w", err)
	}
	keep, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d.cancel = cancel
	d.done.Go(func() { d.keep(keep, l, l.length/2, set) })
	return d, nil
}

// keep asks again when half of the lease is over. It asks as at first, any server, which gives a client
// that it knows the same address.
func (d *dhcp) keep(ctx context.Context, l lease, next time.Duration, set func(lease) error) {
	for {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(next):
			}
			fresh, err := d.ask(ctx)
			if err == nil {
				err = set(fresh)
			}
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				l, next = fresh, fresh.length/2
				break
			}
			logrus.Warnf("keep the address %s by DHCP: %v", l.address, err)
			next = dhcpRetry
		}
	}
}

// ask gets a lease.
func (d *dhcp) ask(ctx context.Context) (lease, error) {
	ctx, cancel := context.WithTimeout(ctx, dhcpTimeout)
	defer cancel()
	given, err := d.client.Request(ctx)
	if err != nil {
		return lease{}, err
	}
	return leaseOf(given.ACK)
}

func (d *dhcp) close() {
	d.cancel()
	_ = d.client.Close()
	d.done.Wait()
	_ = d.ns.Close()
}

// leaseOf checks what a server says: it is the guest's network, not the host, that it can spoil.
func leaseOf(ack *dhcpv4.DHCPv4) (lease, error) {
	ip, mask := ack.YourIPAddr.To4(), ack.SubnetMask()
	if ones, bits := mask.Size(); ip == nil || !ip.IsGlobalUnicast() || bits != 32 || ones == 0 {
		return lease{}, fmt.Errorf("the server gives the address %v with the mask %v", ack.YourIPAddr, mask)
	}
	l := lease{address: &net.IPNet{IP: ip, Mask: mask}, length: max(ack.IPAddressLeaseTime(time.Hour), minLease)}
	if r := ack.Router(); len(r) > 0 {
		l.gateway = r[0]
	}
	l.nameservers = ack.DNS()[:min(len(ack.DNS()), maxNameservers)]
	if s := ack.DomainSearch(); s != nil {
		l.domains = s.Labels
	} else if d := ack.DomainName(); d != "" {
		l.domains = []string{d}
	}
	l.domains = slices.DeleteFunc(l.domains, func(d string) bool { return strings.ContainsAny(d, " \t\r\n\x00#;") })
	return l, nil
}

// resolvConf is the lease's resolv.conf.
func (l lease) resolvConf() []byte {
	var b strings.Builder
	for _, n := range l.nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(l.domains) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(l.domains, " "))
	}
	return []byte(b.String())
}

// setLease gives an interface what a lease says.
func setLease(h *netlink.Handle, link netlink.Link, l lease) error {
	old, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	// Before, because the others of a network go with its first.
	for _, a := range old {
		if !a.IP.Equal(l.address.IP) {
			_ = h.AddrDel(link, &a)
		}
	}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: l.address, ValidLft: int(l.length / time.Second), PreferedLft: int(l.length / time.Second)}); err != nil {
		return fmt.Errorf("add address %s: %w", l.address, err)
	}
	if l.gateway == nil {
		return nil
	}
	everywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Gw: l.gateway, Scope: netlink.SCOPE_UNIVERSE}
	if !l.address.Contains(l.gateway) {
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	if err := h.RouteReplace(&route); err != nil {
		return fmt.Errorf("add the route by %s: %w", l.gateway, err)
	}
	return nil
}

// inNamespace calls f in a network namespace.
func inNamespace[T any](ns netns.NsHandle, f func() (T, error)) (v T, err error) {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return v, err
	}
	defer func() { _ = own.Close() }()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return v, err
	}
	v, err = f()
	if back := netns.Set(own); back != nil {
		return v, errors.Join(err, back) // the thread ends with this goroutine
	}
	runtime.UnlockOSThread()
	return v, err
}
