package usernet

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/icmp"
	xipv4 "golang.org/x/net/ipv4"
	xipv6 "golang.org/x/net/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// pingTimeout is how long an answer may take.
const pingTimeout = 5 * time.Second

// echo is an echo request of the guest's, as a frame.
type echo struct {
	frame []byte
	dst   netip.Addr
	// icmp is the ICMP message, a part of frame.
	icmp []byte
}

// parseEcho finds an echo request in a frame that the filter has let through:
// one that is neither in fragments nor behind extension headers or IP options.
func parseEcho(frame []byte) (echo, bool) {
	eth := header.Ethernet(frame)
	body := frame[header.EthernetMinimumSize:]
	switch eth.Type() {
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(body)
		msg := header.ICMPv4(ip.Payload())
		if ip.HeaderLength() != header.IPv4MinimumSize || ip.Protocol() != uint8(header.ICMPv4ProtocolNumber) ||
			ip.More() || ip.FragmentOffset() != 0 || len(msg) < header.ICMPv4MinimumSize || msg.Type() != header.ICMPv4Echo {
			return echo{}, false
		}
		return echo{frame, netip.AddrFrom4(ip.DestinationAddress().As4()), msg}, true
	case header.IPv6ProtocolNumber:
		ip := header.IPv6(body)
		msg := header.ICMPv6(ip.Payload())
		if ip.TransportProtocol() != header.ICMPv6ProtocolNumber || len(msg) < header.ICMPv6EchoMinimumSize || msg.Type() != header.ICMPv6EchoRequest {
			return echo{}, false
		}
		return echo{frame, netip.AddrFrom16(ip.DestinationAddress().As16()), msg}, true
	}
	return echo{}, false
}

// takePing takes the guest's echo requests to others than the gateway and the
// host, which the stack would answer in their place.
func (n *Network) takePing(frame []byte) bool {
	e, ok := parseEcho(frame)
	if !ok || n.link.filter.ours(e.dst) {
		return false
	}
	if len(n.target(netip.AddrPortFrom(e.dst, 0))) == 0 || !n.pings.take() {
		return true
	}
	e, _ = parseEcho(slices.Clone(frame))
	started := n.spawn(func() {
		defer n.pings.release()
		if data, ok := n.ping(e); ok {
			n.link.send(e.reply(data))
		}
	})
	if !started {
		n.pings.release()
	}
	return true
}

// ping sends the guest's request in the host's name and returns the answer's
// data. It needs no privilege where the system lets ordinary users ping (Linux:
// net.ipv4.ping_group_range, macOS always); as root it does without.
func (n *Network) ping(e echo) (data []byte, ok bool) {
	c, dst, err := listenPing(e.dst)
	if err != nil {
		return nil, false
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(n.ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(pingTimeout))
	request, protocol := icmp.Type(xipv4.ICMPTypeEcho), 1
	answer := icmp.Type(xipv4.ICMPTypeEchoReply)
	if e.dst.Is6() {
		request, answer, protocol = xipv6.ICMPTypeEchoRequest, xipv6.ICMPTypeEchoReply, 58
	}
	id := int(e.icmp[4])<<8 | int(e.icmp[5])
	seq := int(e.icmp[6])<<8 | int(e.icmp[7])
	sent := e.icmp[8:]
	b, err := (&icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: seq, Data: sent}}).Marshal(nil)
	if err != nil {
		return nil, false
	}
	if _, err := c.WriteTo(b, dst); err != nil {
		return nil, false
	}
	buf := make([]byte, len(b)+header.IPv4MaximumHeaderSize)
	for n.ctx.Err() == nil {
		k, from, err := c.ReadFrom(buf)
		if err != nil {
			return nil, false
		}
		m, err := icmp.ParseMessage(protocol, buf[:k])
		if err != nil || m.Type != answer || addrOf(from) != e.dst {
			continue // a raw socket sees those of others too
		}
		// An unprivileged socket has an identifier of its own instead of id.
		if body, ok := m.Body.(*icmp.Echo); ok && body.Seq == seq && bytes.Equal(body.Data, sent) {
			return body.Data, true
		}
	}
	return nil, false
}

// listenPing opens a socket for echo requests to dst.
func listenPing(dst netip.Addr) (*icmp.PacketConn, net.Addr, error) {
	user, raw, any := "udp4", "ip4:icmp", "0.0.0.0"
	if dst.Is6() {
		user, raw, any = "udp6", "ip6:ipv6-icmp", "::"
	}
	if c, err := icmp.ListenPacket(user, any); err == nil {
		return c, &net.UDPAddr{IP: dst.AsSlice()}, nil
	}
	c, err := icmp.ListenPacket(raw, any)
	return c, &net.IPAddr{IP: dst.AsSlice()}, err
}

func addrOf(a net.Addr) netip.Addr {
	var ip net.IP
	switch a := a.(type) {
	case *net.UDPAddr:
		ip = a.IP
	case *net.IPAddr:
		ip = a.IP
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

// reply turns the request into its answer, in place.
func (e echo) reply(data []byte) []byte {
	eth := header.Ethernet(e.frame)
	src := eth.SourceAddress()
	eth.Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(gatewayMAC), DstAddr: src, Type: eth.Type()})
	copy(e.icmp[8:], data)
	body := e.frame[header.EthernetMinimumSize:]
	if e.dst.Is4() {
		ip := header.IPv4(body)
		from, to := ip.SourceAddress(), ip.DestinationAddress()
		ip.SetSourceAddress(to)
		ip.SetDestinationAddress(from)
		ip.SetTTL(64)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		msg := header.ICMPv4(e.icmp)
		msg.SetType(header.ICMPv4EchoReply)
		msg.SetChecksum(0)
		msg.SetChecksum(^checksum.Checksum(msg, 0))
		return e.frame
	}
	ip := header.IPv6(body)
	from, to := ip.SourceAddress(), ip.DestinationAddress()
	ip.SetSourceAddress(to)
	ip.SetDestinationAddress(from)
	ip.SetHopLimit(64)
	msg := header.ICMPv6(e.icmp)
	msg.SetType(header.ICMPv6EchoReply)
	msg.SetChecksum(0)
	msg.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: msg, Src: to, Dst: from}))
	return e.frame
}
