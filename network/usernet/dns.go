package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const (
	// dnsPort is where the gateway answers queries.
	dnsPort = 53
	// serverTimeout is how long one of the host's nameservers may take before the
	// next is asked. The guest's resolver asks again after 5 s (resolv.conf(5)).
	serverTimeout = 2 * time.Second
	// queryIdle is how long a TCP connection to the DNS server may be idle (RFC
	// 7766, section 6.2.3: a few seconds).
	queryIdle = 10 * time.Second
	// maxUDPAnswer is the longest answer that fits a datagram.
	maxUDPAnswer = maxDatagram
	// maxMessage is the longest message that TCP's length field tells.
	maxMessage = 65535
)

// upstreamPort is where the host's nameservers answer queries; tests have another.
var upstreamPort uint16 = 53

// serveDNS answers DNS queries to one of the gateway's addresses.
func (n *Network) serveDNS(a netip.Addr) error {
	at := netip.AddrPortFrom(a, dnsPort)
	local := fullAddress(at)
	u, err := gonet.DialUDP(n.stack, &local, nil, protocolOf(a))
	if err != nil {
		return fmt.Errorf("serve DNS at %s: %w", at, err)
	}
	l, err := gonet.ListenTCP(n.stack, local, protocolOf(a))
	if err != nil {
		_ = u.Close()
		return fmt.Errorf("serve DNS at %s: %w", at, err)
	}
	context.AfterFunc(n.ctx, func() {
		_ = u.Close()
		l.Shutdown()
		_ = l.Close()
	})
	n.spawn(func() { n.answerUDP(u) })
	n.spawn(func() { n.answerTCP(l) })
	return nil
}

func (n *Network) answerUDP(u net.PacketConn) {
	buf := make([]byte, maxDatagram)
	for {
		k, from, err := u.ReadFrom(buf)
		if n.ctx.Err() != nil {
			return
		}
		if err != nil || !n.queries.take() {
			continue // an error is that of an earlier answer
		}
		query := append([]byte(nil), buf[:k]...)
		ok := n.spawn(func() {
			defer n.queries.release()
			if answer, err := n.resolve(query, "udp"); err == nil {
				_, _ = u.WriteTo(answer, from)
			}
		})
		if !ok {
			n.queries.release()
		}
	}
}

func (n *Network) answerTCP(l net.Listener) {
	conns := make(slots, maxQueryConns)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		ok := conns.take() && (n.spawn(func() {
			defer conns.release()
			defer c.Close()
			stop := context.AfterFunc(n.ctx, func() { _ = c.Close() })
			defer stop()
			n.answerConn(c)
		}) || release(conns))
		if !ok {
			_ = c.Close()
		}
	}
}

// release gives a slot back that was taken in vain.
func release(s slots) bool {
	s.release()
	return false
}

// answerConn answers the queries of one connection, one after the other.
func (n *Network) answerConn(c net.Conn) {
	for {
		_ = c.SetDeadline(time.Now().Add(queryIdle))
		query, err := readMessage(c)
		if err != nil {
			return
		}
		answer, err := n.resolve(query, "tcp")
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(queryIdle))
		if err := writeMessage(c, answer); err != nil {
			return
		}
	}
}

// readMessage and writeMessage handle DNS messages on streams, which have their
// length before them (RFC 1035, section 4.2.2).
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeMessage(w io.Writer, b []byte) error {
	if len(b) > maxMessage {
		return errors.New("a DNS message of more than 65535 bytes")
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

// resolve answers a query itself if it is about our own domain; else the host's
// nameservers do, whose answers of whatever type pass through as they are.
func (n *Network) resolve(query []byte, network string) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil, errors.New("no DNS query")
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	if answer, ok, err := n.own(h, q); ok {
		return answer, err
	}
	for _, server := range nameservers(n.cfg.ResolvConf) {
		answer, err := n.ask(network, netip.AddrPortFrom(server, upstreamPort), query)
		if err == nil {
			return answer, nil
		}
	}
	if n.ctx.Err() != nil {
		return nil, n.ctx.Err()
	}
	return failure(h, q, dnsmessage.RCodeServerFailure)
}

// ask asks one nameserver.
func (n *Network) ask(network string, server netip.AddrPort, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(n.ctx, serverTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if network == "tcp" {
		if err := writeMessage(c, query); err != nil {
			return nil, err
		}
		return readMessage(c)
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDPAnswer)
	for {
		k, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if k >= 2 && [2]byte(buf[:2]) == [2]byte(query[:2]) { // the identifier
			return buf[:k], nil
		}
	}
}

// maxAnswers is how many addresses of machines with the same name are told.
const maxAnswers = 8

// own answers queries about our own domain, and about names of machines of the
// same network; false if it is neither.
func (n *Network) own(h dnsmessage.Header, q dnsmessage.Question) ([]byte, bool, error) {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	label, inDomain := strings.CutSuffix(name, "."+Domain)
	inDomain = inDomain || name == Domain
	var addrs [][2]netip.Addr
	switch {
	case name == HostName:
		addrs = append(addrs, n.addrs.Host)
	case name == GatewayName:
		addrs = append(addrs, n.addrs.Gateway)
	case inDomain, !strings.Contains(name, "."):
		addrs = n.machines(label)
	}
	if len(addrs) == 0 {
		if !inDomain {
			return nil, false, nil
		}
		answer, err := failure(h, q, dnsmessage.RCodeNameError)
		return answer, true, err
	}
	b := dnsmessage.NewBuilder(nil, reply(h, dnsmessage.RCodeSuccess))
	b.EnableCompression()
	rh := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
	err := errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers())
	for _, a := range addrs {
		if err != nil || q.Class != dnsmessage.ClassINET {
			break
		}
		switch q.Type {
		case dnsmessage.TypeA:
			err = b.AResource(rh, dnsmessage.AResource{A: a[0].As4()})
		case dnsmessage.TypeAAAA:
			err = b.AAAAResource(rh, dnsmessage.AAAAResource{AAAA: a[1].As16()})
		}
	}
	if err != nil {
		return nil, true, err
	}
	answer, err := b.Finish()
	return answer, true, err
}

// machines are the addresses of the network's machines that have a name, in any
// order, so that each gets its turn.
func (n *Network) machines(name string) [][2]netip.Addr {
	if n.cfg.LAN == nil || name == "" {
		return nil
	}
	numbers := n.cfg.LAN.Lookup(name)
	rand.Shuffle(len(numbers), func(i, k int) { numbers[i], numbers[k] = numbers[k], numbers[i] })
	var out [][2]netip.Addr
	for _, k := range numbers[:min(len(numbers), maxAnswers)] {
		a := n.addrs.member(k)
		out = append(out, [2]netip.Addr{a.Guest[0].Addr(), a.Guest[1].Addr()})
	}
	return out
}

func reply(h dnsmessage.Header, code dnsmessage.RCode) dnsmessage.Header {
	return dnsmessage.Header{
		ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: code,
	}
}

// failure is an answer without records.
func failure(h dnsmessage.Header, q dnsmessage.Question, code dnsmessage.RCode) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, reply(h, code))
	if err := errors.Join(b.StartQuestions(), b.Question(q)); err != nil {
		return nil, err
	}
	return b.Finish()
}
