// Package usernet is a network for one machine that needs no privilege on the
// host: a gateway in this process that ends the guest's TCP connections, UDP
// flows and pings, and makes its own in their place with ordinary sockets of the
// host (network address translation by a second TCP/IP stack, gVisor's). It is
// IPv4 and IPv6, has no DHCP (the guest is told its addresses by other means),
// answers DNS from the host's resolvers, and publishes ports of the guest on the
// host.
//
// The guest is not trusted. Frames that are not its own are dropped before the
// stack sees them; connections, flows, pings and queries are bounded (Limits),
// and so is what each of them buffers. A guest reaches what an ordinary process
// of the host reaches on the network, but neither the host's loopback addresses
// (unless Config.HostLoopback says so) nor link-local ones, where clouds keep
// their metadata services.
package usernet
