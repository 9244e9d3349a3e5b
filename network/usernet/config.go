package usernet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/applevm/applevm/network/lan"
)

// Names that the gateway's DNS server answers itself.
const (
	// Domain is the domain of those names; it holds no others.
	Domain = "applevm.internal"
	// HostName is the host's.
	HostName = "host." + Domain
	// GatewayName is the gateway's, which is the DNS server's too.
	GatewayName = "gateway." + Domain
)

const (
	// DefaultMTU is the largest that has the largest IP packet (65535 bytes) and
	// a multiple of 16: the fewer packets, the less is done for each byte.
	DefaultMTU = 65520
	// MinMTU is the least that IPv6 can do with (RFC 8200, section 5).
	MinMTU = 1280
)

// DefaultSubnet is the guest's network where no other is asked for.
var DefaultSubnet = netip.MustParsePrefix("192.168.127.0/24")

// subnet6 is a unique local prefix (RFC 4193): its 40 random bits and its subnet
// spell "applevm".
var subnet6 = netip.MustParsePrefix("fd61:7070:6c65:766d::/64")

// MAC addresses, locally administered.
var (
	gatewayMAC = net.HardwareAddr{0x02, 0x61, 0x76, 0x6d, 0x00, 0x01}
	guestMAC   = net.HardwareAddr{0x02, 0x61, 0x76, 0x6d, 0x00, 0x02}
)

// Addresses are those of one network.
type Addresses struct {
	// MAC is the guest's.
	MAC net.HardwareAddr
	// Guest holds the guest's addresses with their networks: IPv4, IPv6.
	Guest [2]netip.Prefix
	// Gateway holds the gateway's, which routes all and answers DNS.
	Gateway [2]netip.Addr
	// Host holds those by which the guest reaches the host.
	Host [2]netip.Addr
}

// Addresses returns the addresses of the network.
func (c Config) Addresses() (Addresses, error) {
	a, err := AddressesIn(c.Subnet)
	if err == nil && c.LAN != nil {
		a = a.member(c.LAN.Number())
	}
	return a, err
}

// AddressesIn returns the addresses for an IPv4 subnet; the zero prefix is
// DefaultSubnet. The first address is the gateway's, the second the guest's if it
// is alone, the last the host's.
func AddressesIn(subnet netip.Prefix) (Addresses, error) {
	if !subnet.IsValid() {
		subnet = DefaultSubnet
	}
	if !subnet.Addr().Is4() || subnet != subnet.Masked() || subnet.Bits() < 8 || subnet.Bits() > 29 {
		return Addresses{}, fmt.Errorf("%s is no IPv4 network with a prefix of 8 to 29 bits", subnet)
	}
	if a := subnet.Addr(); a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return Addresses{}, fmt.Errorf("%s cannot be a machine's network", subnet)
	}
	gateway := subnet.Addr().Next()
	last := subnet.Addr().As4()
	for bit := subnet.Bits(); bit < 31; bit++ { // the last but the broadcast address
		last[bit/8] |= 1 << (7 - bit%8)
	}
	gateway6 := subnet6.Addr().Next()
	host6 := subnet6.Addr().As16()
	host6[15] = 0xfe
	return Addresses{
		MAC:     guestMAC,
		Guest:   [2]netip.Prefix{netip.PrefixFrom(gateway.Next(), subnet.Bits()), netip.PrefixFrom(gateway6.Next(), subnet6.Bits())},
		Gateway: [2]netip.Addr{gateway, gateway6},
		Host:    [2]netip.Addr{netip.AddrFrom4(last), netip.AddrFrom16(host6)},
	}, nil
}

// Limits bound what a guest, or who calls its published ports, can take of the
// host. The zero value of a field is its default.
type Limits struct {
	// TCP is the number of connections at a time, in both directions together;
	// each may buffer tcpBuffer bytes in each direction.
	TCP int
	// UDP is the number of flows at a time; one more ends the one that was idle
	// for longest.
	UDP int
}

// Defaults of Limits.
const (
	DefaultTCP = 1024
	DefaultUDP = 512
)

// Bounds that nobody needs to change.
const (
	// tcpBuffer bounds what one connection buffers in each direction, in bytes.
	tcpBuffer = 256 << 10
	// maxDialing is how many of the guest's connections may wait for their
	// server's answer at a time; further ones have to be asked for again, which TCP does.
	maxDialing = 256
	// maxPings is how many pings may wait for their answer; others get none.
	maxPings = 32
	// maxQueries is how many DNS queries may wait for their answer; others get none.
	maxQueries = 64
	// maxQueryConns is how many TCP connections to the DNS server there may be.
	maxQueryConns = 16
)

// Config says what network a machine gets.
type Config struct {
	// Subnet is the guest's IPv4 network; the zero prefix is DefaultSubnet.
	Subnet netip.Prefix
	// MTU is the longest packet in bytes, without the Ethernet header; 0 is
	// DefaultMTU.
	MTU int
	// HostLoopback lets the guest reach, by the host's address, what listens on
	// the host's loopback addresses.
	HostLoopback bool
	// Limits bound what the guest takes.
	Limits Limits
	// LAN joins the network to those of other machines, which have the same Subnet;
	// nil if the machine is alone. The network closes it.
	LAN *lan.Port
	// ResolvConf is the host's resolver configuration, read anew for every query;
	// empty is /etc/resolv.conf.
	ResolvConf string
}

// leave leaves the network of several machines.
func (c Config) leave() error {
	if c.LAN == nil {
		return nil
	}
	return c.LAN.Close()
}

// complete fills in the defaults, and says what addresses follow.
func (c Config) complete() (Config, Addresses, error) {
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < MinMTU || c.MTU > DefaultMTU {
		return c, Addresses{}, fmt.Errorf("an MTU of %d is not within %d and %d", c.MTU, MinMTU, DefaultMTU)
	}
	if c.Limits.TCP == 0 {
		c.Limits.TCP = DefaultTCP
	}
	if c.Limits.UDP == 0 {
		c.Limits.UDP = DefaultUDP
	}
	if c.Limits.TCP < 0 || c.Limits.UDP < 0 {
		return c, Addresses{}, errors.New("a limit is negative")
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	a, err := c.Addresses()
	return c, a, err
}
