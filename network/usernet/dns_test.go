package usernet

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameserver answers every query, over UDP and TCP, with one TXT record.
func nameserver(t *testing.T, addr, text string) {
	t.Helper()
	at := net.JoinHostPort(addr, "0")
	if upstreamPort != 53 {
		at = netip.AddrPortFrom(netip.MustParseAddr(addr), upstreamPort).String()
	}
	u, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	before := upstreamPort
	upstreamPort = u.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	t.Cleanup(func() { upstreamPort = before })
	l, err := net.Listen("tcp", u.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	answer := func(query []byte) []byte {
		var p dnsmessage.Parser
		h, err := p.Start(query)
		if err != nil {
			t.Error(err)
			return nil
		}
		q, err := p.Question()
		if err != nil {
			t.Error(err)
			return nil
		}
		b := dnsmessage.NewBuilder(nil, reply(h, dnsmessage.RCodeSuccess))
		rh := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}
		err = errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers(), b.TXTResource(rh, dnsmessage.TXTResource{TXT: []string{text}}))
		out, ferr := b.Finish()
		if err := errors.Join(err, ferr); err != nil {
			t.Error(err)
		}
		return out
	}
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			k, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(answer(buf[:k]), from)
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					query, err := readMessage(c)
					if err != nil || writeMessage(c, answer(query)) != nil {
						return
					}
				}
			}()
		}
	}()
}

// lookup asks the gateway and returns the answer's code and records as text.
func lookup(t *testing.T, g *guest, network string, family int, name string, kind dnsmessage.Type) (dnsmessage.RCode, []string) {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 4711, RecursionDesired: true})
	q := dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}
	if err := errors.Join(b.StartQuestions(), b.Question(q)); err != nil {
		t.Fatal(err)
	}
	query, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(g.n.addrs.Gateway[family], dnsPort)
	var answer []byte
	if network == "tcp" {
		c, err := g.dial(to)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeMessage(c, query); err != nil {
			t.Fatal(err)
		}
		if answer, err = readMessage(c); err != nil {
			t.Fatal(err)
		}
	} else {
		c := g.dialUDP(to)
		if _, err := c.Write(query); err != nil {
			t.Fatal(err)
		}
		answer = make([]byte, maxDatagram)
		k, err := c.Read(answer)
		if err != nil {
			t.Fatal(err)
		}
		answer = answer[:k]
	}
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		t.Fatal(err)
	}
	if m.ID != 4711 || !m.Response || len(m.Questions) != 1 || m.Questions[0] != q {
		t.Errorf("%s: answer %v does not fit", name, m.GoString())
	}
	var out []string
	for _, a := range m.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(r.A).String())
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(r.AAAA).String())
		case *dnsmessage.TXTResource:
			out = append(out, r.TXT...)
		}
	}
	return m.RCode, out
}

func TestDNS(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, conf, "# none yet\nsearch example.org\nnameserver 127.0.0.2\n")
	g := newGuest(t, Config{ResolvConf: conf})
	nameserver(t, "127.0.0.2", "first")
	nameserver(t, "127.0.0.3", "second")
	for _, network := range []string{"udp", "tcp"} {
		for family := range 2 {
			for _, tt := range []struct {
				name string
				kind dnsmessage.Type
				code dnsmessage.RCode
				want []string
			}{
				{"example.com.", dnsmessage.TypeTXT, dnsmessage.RCodeSuccess, []string{"first"}},
				{"host.applevm.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []string{"192.168.127.254"}},
				{"HOST.applevm.Internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []string{"192.168.127.254"}},
				{"host.applevm.internal.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, []string{"fd61:7070:6c65:766d::fe"}},
				{"gateway.applevm.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []string{"192.168.127.1"}},
				{"host.applevm.internal.", dnsmessage.TypeMX, dnsmessage.RCodeSuccess, nil},
				{"nosuch.applevm.internal.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
			} {
				code, got := lookup(t, g, network, family, tt.name, tt.kind)
				if code != tt.code || !slices.Equal(got, tt.want) {
					t.Errorf("%s %s %s: %s %q, want %s %q", network, tt.name, tt.kind, code, got, tt.code, tt.want)
				}
			}
		}
	}
	// The host's resolver changes while the guest runs.
	write(t, conf, "nameserver 127.0.0.3\n")
	if _, got := lookup(t, g, "udp", 0, "example.com.", dnsmessage.TypeTXT); !slices.Equal(got, []string{"second"}) {
		t.Errorf("after the change: %q", got)
	}
	// One that is not there is passed over.
	write(t, conf, "nameserver 127.0.0.4\nnameserver 127.0.0.3\n")
	if _, got := lookup(t, g, "udp", 0, "example.com.", dnsmessage.TypeTXT); !slices.Equal(got, []string{"second"}) {
		t.Errorf("with a missing one: %q", got)
	}
	write(t, conf, "nameserver 127.0.0.4\n")
	if code, got := lookup(t, g, "udp", 0, "example.com.", dnsmessage.TypeTXT); code != dnsmessage.RCodeServerFailure || got != nil {
		t.Errorf("without a server: %s %q", code, got)
	}
}

func TestDNSKeepsConnections(t *testing.T) {
	g := newGuest(t, Config{})
	c, err := g.dial(netip.AddrPortFrom(g.n.addrs.Gateway[0], dnsPort))
	if err != nil {
		t.Fatal(err)
	}
	// What is no query ends the connection.
	if err := writeMessage(c, []byte("no DNS")); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(deadline))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

func TestParseNameservers(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"nameserver":                  "",
		"nameserver x\n":              "",
		"nameserver 10.0.0.1":         "10.0.0.1",
		" nameserver\t10.0.0.1 # one": "10.0.0.1",
		"#nameserver 10.0.0.1\noptions edns0\nnameserver fe80::1%eth0\nnameserver ::1\n": "fe80::1%eth0 ::1",
		strings.Repeat("nameserver 10.0.0.1\n", 5):                                       "10.0.0.1 10.0.0.1 10.0.0.1",
	} {
		var got []string
		for _, a := range parseNameservers(strings.NewReader(in)) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
