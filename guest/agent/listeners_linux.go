package agent

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// listenersPeriod is how often the kernel is asked for listening sockets; it has
// nothing that tells of a new one.
const listenersPeriod = 100 * time.Millisecond

// waitListeners answers as soon as the listeners' digest is not known.
func waitListeners(ctx context.Context, netDir, known string) (*guestv1.WaitListenersResponse, error) {
	for {
		list, err := listeners(netDir)
		if err != nil {
			return nil, err
		}
		r := &guestv1.WaitListenersResponse{Listeners: list}
		if r.Digest, err = digestOf(r); err != nil || r.Digest != known {
			return r, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(listenersPeriod):
		}
	}
}

// digestOf tells answers apart.
func digestOf(answer proto.Message) (string, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(answer)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8]), nil
}

// States of sockets (include/net/tcp_states.h); UDP's unconnected ones are "closed".
const (
	stateListen = "0A"
	stateClose  = "07"
)

// listeners lists the sockets of netDir (/proc/net) that others can send to.
func listeners(netDir string) ([]*guestv1.Listener, error) {
	first, last := ephemeralPorts("/proc/sys/net/ipv4/ip_local_port_range")
	var out []*guestv1.Listener
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := os.Open(netDir + "/" + name)
		if err != nil {
			if os.IsNotExist(err) {
				continue // a kernel without IPv6
			}
			return nil, err
		}
		protocol := strings.TrimSuffix(name, "6")
		list, err := readListeners(f, protocol)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s/%s: %w", netDir, name, err)
		}
		if protocol == "udp" {
			// A port that the kernel has chosen is a client's.
			list = slices.DeleteFunc(list, func(l *guestv1.Listener) bool { return l.Port >= first && l.Port <= last })
		}
		out = append(out, list...)
	}
	slices.SortFunc(out, func(a, b *guestv1.Listener) int {
		return strings.Compare(listenerKey(a), listenerKey(b))
	})
	out = slices.CompactFunc(out, func(a, b *guestv1.Listener) bool { return listenerKey(a) == listenerKey(b) })
	return out[:min(len(out), api.MaxListeners)], nil
}

func listenerKey(l *guestv1.Listener) string {
	return fmt.Sprintf("%s %05d %x", l.Protocol, l.Port, l.Address)
}

// readListeners reads /proc/net/tcp and its like (proc_net_tcp.rst). Of TCP's,
// listening sockets come first: the rest, which may be long, is not read.
func readListeners(r io.Reader, protocol string) ([]*guestv1.Listener, error) {
	var out []*guestv1.Listener
	s := bufio.NewScanner(r)
	s.Scan() // the heading
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 4 {
			return nil, fmt.Errorf("line %q has no state", s.Text())
		}
		switch {
		case protocol == "tcp" && f[3] != stateListen:
			return out, nil
		case protocol == "udp" && f[3] != stateClose:
			continue
		}
		addr, port, err := parseSocketAddress(f[1])
		if err != nil {
			return nil, err
		}
		if port != 0 {
			out = append(out, &guestv1.Listener{Protocol: protocol, Address: addr, Port: port})
		}
	}
	return out, s.Err()
}

// parseSocketAddress reads an address of /proc/net: words in the machine's byte
// order, and a port, in hexadecimal digits.
func parseSocketAddress(text string) (addr []byte, port uint32, err error) {
	a, p, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(p, 16, 16)
	if err != nil {
		return nil, 0, fmt.Errorf("socket address %q: %w", text, err)
	}
	words, err := hex.DecodeString(a)
	if err != nil || len(words) != 4 && len(words) != 16 {
		return nil, 0, fmt.Errorf("socket address %q is neither IPv4 nor IPv6", text)
	}
	for i := 0; i < len(words); i += 4 {
		addr = binary.NativeEndian.AppendUint32(addr, binary.BigEndian.Uint32(words[i:]))
	}
	return addr, uint32(n), nil
}

// ephemeralPorts is the range of ports that the kernel chooses from.
func ephemeralPorts(file string) (first, last uint32) {
	b, err := os.ReadFile(file)
	if err == nil {
		if n, _ := fmt.Sscan(string(b), &first, &last); n == 2 {
			return first, last
		}
	}
	return math.MaxUint32, 0
}
