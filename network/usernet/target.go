package usernet

import (
	"net"
	"net/netip"
)

// target says what the host is to connect to for a guest that wants to reach
// dst; none if it may not.
func (n *Network) target(dst netip.AddrPort) []netip.AddrPort {
	a := dst.Addr()
	switch {
	case a == n.addrs.Host[0] || a == n.addrs.Host[1]:
		return n.hostTarget(a, dst.Port())
	case n.addrs.Guest[0].Contains(a), n.addrs.Guest[1].Contains(a), !reachable(a):
		return nil
	}
	return []netip.AddrPort{dst}
}

// thisNetwork is "this host on this network" (RFC 1122, section 3.2.1.3): Linux
// takes its first address for loopback.
var thisNetwork = netip.MustParsePrefix("0.0.0.0/8")

// reachable tells whether guests may reach an address. Those that name the host
// itself are left out, in all their forms, and so are those that mean something
// else on each link.
func reachable(a netip.Addr) bool {
	switch {
	case !a.IsValid(), a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), a.Is4In6(), thisNetwork.Contains(a):
		return false
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	}
	return true
}

// hostTarget is the host itself: its loopback addresses if the guest may reach
// them, else the address that it has on the network, where what listens on all
// addresses is reached.
func (n *Network) hostTarget(a netip.Addr, port uint16) []netip.AddrPort {
	loopback := []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port),
		netip.AddrPortFrom(netip.IPv6Loopback(), port),
	}
	switch {
	case n.cfg.HostLoopback && a.Is6():
		return []netip.AddrPort{loopback[1], loopback[0]}
	case n.cfg.HostLoopback:
		return loopback
	}
	own := hostAddress(a.Is4())
	if !own.IsValid() {
		return nil
	}
	return []netip.AddrPort{netip.AddrPortFrom(own, port)}
}

// hostAddress is the host's address on the network, as far as it has one: the one
// that it would send from to an address far away (which are from RFC 5737 and RFC
// 3849, for documentation). Nothing is sent.
func hostAddress(is4 bool) netip.Addr {
	network, far := "udp4", "192.0.2.254:9"
	if !is4 {
		network, far = "udp6", "[2001:db8::1]:9"
	}
	c, err := net.Dial(network, far)
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	a, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	own := a.AddrPort().Addr().Unmap().WithZone("")
	if !reachable(own) {
		return netip.Addr{}
	}
	return own
}
