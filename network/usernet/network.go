package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// nicID is the stack's one network interface.
const nicID = 1

// Network is a running network. Its methods are safe for concurrent use.
type Network struct {
	cfg   Config
	addrs Addresses
	stack *stack.Stack
	link  *link
	// segment checks the frames that go to and come from cfg.LAN.
	segment segment

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // all that serves the guest

	tcp     slots // connections
	pings   slots
	queries slots
	flows   flows

	mu        sync.Mutex
	closed    bool
	published map[Port]func()
}

// New starts a network whose guest is at the other end of conn, a connection
// that keeps datagrams apart, such as Pair's. Close ends it.
func New(cfg Config, conn net.Conn) (*Network, error) {
	cfg, addrs, err := cfg.complete()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("user network: %w", errors.Join(err, cfg.leave()))
	}
	n := &Network{
		cfg:   cfg,
		addrs: addrs,
		link: &link{
			conn: conn, mtu: uint32(cfg.MTU), mac: linkAddress(gatewayMAC),
			done: make(chan struct{}), filter: &filter{addrs},
		},
		tcp:       make(slots, cfg.Limits.TCP),
		pings:     make(slots, maxPings),
		queries:   make(slots, maxQueries),
		published: map[Port]func(){},
	}
	if cfg.LAN != nil {
		n.segment = segment{addrs.Guest[0].Masked(), cfg.LAN.Number()}
	}
	n.flows.limit = cfg.Limits.UDP
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.start(); err != nil {
		_ = n.Close()
		return nil, fmt.Errorf("user network: %w", err)
	}
	return n, nil
}

func (n *Network) start() error {
	go n.link.run(n.takePeer, n.takePing) // ends with the connection
	if err := n.makeStack(); err != nil {
		return err
	}
	forwardTCP := tcp.NewForwarder(n.stack, tcpBuffer, maxDialing, n.forwardTCP)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, forwardTCP.HandlePacket)
	forwardUDP := udp.NewForwarder(n.stack, n.forwardUDP)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, forwardUDP.HandlePacket)
	for _, a := range n.addrs.Gateway {
		if err := n.serveDNS(a); err != nil {
			return err
		}
	}
	if n.cfg.LAN != nil {
		n.spawn(n.receivePeers)
	}
	return nil
}

func (n *Network) makeStack() error {
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{arp.NewProtocol, ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcpBuffer, Max: tcpBuffer}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcpBuffer, Max: tcpBuffer}
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(timeWaitTimeout)
	for _, o := range []tcpip.SettableTransportProtocolOption{&send, &receive, &sack, &moderate, &timeWait} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	if err := n.stack.CreateNIC(nicID, n.link); err != nil {
		return fmt.Errorf("create the gateway's interface: %s", err)
	}
	// The gateway takes connections to any address, in that address's name.
	if err := n.stack.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("set promiscuous mode: %s", err)
	}
	if err := n.stack.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("set spoofing: %s", err)
	}
	// The gateway's address comes first: it is the source of what the gateway
	// sends in its own name.
	for i, bits := range []int{32, 128} {
		for _, a := range []netip.Addr{n.addrs.Gateway[i], n.addrs.Host[i]} {
			pa := tcpip.ProtocolAddress{
				Protocol:          protocolOf(a),
				AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(a.AsSlice()), PrefixLen: bits},
			}
			if err := n.stack.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
				return fmt.Errorf("add address %s: %s", a, err)
			}
		}
		guest := n.addrs.Guest[i].Addr()
		if err := n.stack.AddStaticNeighbor(nicID, protocolOf(guest), tcpip.AddrFromSlice(guest.AsSlice()), linkAddress(n.addrs.MAC)); err != nil {
			return fmt.Errorf("add the guest's address %s: %s", guest, err)
		}
	}
	n.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return nil
}

// Close ends the network with all its connections and published ports.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	unpublish := n.published
	n.published = nil
	n.mu.Unlock()
	n.cancel()
	for _, f := range unpublish {
		f()
	}
	err := n.link.conn.Close() // nothing waits for the guest any more
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	err = errors.Join(err, n.cfg.leave())
	n.flows.close()
	if n.stack != nil {
		n.stack.Close()
	}
	n.wg.Wait()
	if n.stack != nil {
		n.stack.Wait()
	}
	return err
}

// Addresses returns the network's addresses.
func (n *Network) Addresses() Addresses { return n.addrs }

// spawn runs f unless the network has been closed. Close waits for f, which has
// to end with n.ctx.
func (n *Network) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.wg.Go(f)
	return true
}

// slots bound how many of something there are at a time.
type slots chan struct{}

// take takes a slot, if there is one left.
func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) release() { <-s }

// protocolOf is the network protocol of an address.
func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// fullAddress converts an address and port.
func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// addrPort converts an address of the stack.
func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(a.AsSlice()) // not valid if there is none
	return netip.AddrPortFrom(addr, port)
}
