// Package lan joins the networks of several machines, each of which is served by
// a process of its own, to one, without a process in the middle: their meeting
// point is a directory, private to a user, in which each member has a datagram
// socket. A member is known by its number, which is its socket's name and from
// which its addresses follow, so that nothing has to be learnt: a frame is sent
// to the socket of the member that it is for.
//
// The end of a member, however it comes, is the end of its socket: the file that
// it may leave is found by the next member that looks, and removed. The directory
// goes with the last member.
package lan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// FirstNumber and MaxNumber bound members' numbers: 1 and 254 are taken on each
// network (package usernet), 0 and 255 are nobody's.
const (
	FirstNumber = 2
	MaxNumber   = 253
)

// LastNumber is the highest number that a member can have in an IPv4 network, of
// which the last addresses are the host's and for broadcasts.
func LastNumber(subnet netip.Prefix) int {
	if subnet.Bits() <= 24 {
		return MaxNumber
	}
	return 1<<(32-subnet.Bits()) - 3
}

// lockTimeout bounds the wait for others that join or leave.
const lockTimeout = 10 * time.Second

// Member is what the others know of one.
type Member struct {
	// Names are those by which the others find it, in lower case.
	Names []string `json:"names"`
	// Subnet is its IPv4 network, which is the same for all.
	Subnet netip.Prefix `json:"subnet"`
}

// maxMember bounds a member's description, in bytes.
const maxMember = 64 << 10

// nameSuffix ends the name of the file that describes a member.
const nameSuffix = ".json"

// Port is a member's own connection.
type Port struct {
	dir    string
	number int
	conn   *net.UnixConn

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // of peers

	queued atomic.Int64 // bytes that wait for peers

	mu     sync.Mutex
	closed bool
	peers  map[int]*peer

	lookup sync.Mutex // one at a time, as the guest asks for as many as it likes
}

// Join makes a member of the network that meets in dir, which is made if it is
// not there. Its parent must be there, and dir must be the user's alone.
func Join(ctx context.Context, dir string, m Member) (*Port, error) {
	p, err := join(ctx, dir, m)
	if err != nil {
		return nil, fmt.Errorf("join the network of %s: %w", dir, err)
	}
	return p, nil
}

func join(ctx context.Context, dir string, m Member) (*Port, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	unlock, err := lock(ctx, dir, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	used, err := sweep(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range used {
		if other, err := readMember(dir, n); err == nil && other.Subnet != m.Subnet {
			return nil, fmt.Errorf("its containers have the subnet %s, this one would have %s (network.subnet in the configuration)", other.Subnet, m.Subnet)
		}
	}
	number := FirstNumber
	for slices.Contains(used, number) {
		number++
	}
	if number > LastNumber(m.Subnet) {
		return nil, fmt.Errorf("all its %d addresses are taken", LastNumber(m.Subnet)-FirstNumber+1)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(b) > maxMember {
		return nil, fmt.Errorf("the container's names have more than %d bytes", maxMember)
	}
	// The names come first: what has a socket has a name.
	if err := os.WriteFile(socket(dir, number)+nameSuffix, b, 0o600); err != nil {
		return nil, err
	}
	conn, err := listen(socket(dir, number))
	if err != nil {
		return nil, errors.Join(err, os.Remove(socket(dir, number)+nameSuffix))
	}
	p := &Port{dir: dir, number: number, conn: conn, peers: map[int]*peer{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Number is the member's.
func (p *Port) Number() int { return p.number }

// Receive reads a frame that another member has sent. What does not fit is lost.
func (p *Port) Receive(b []byte) (int, error) { return p.conn.Read(b) }

// Lookup returns the numbers of the members that have a name.
func (p *Port) Lookup(name string) []int {
	p.lookup.Lock()
	defer p.lookup.Unlock()
	list, err := os.ReadDir(p.dir)
	if err != nil {
		return nil
	}
	name = strings.ToLower(name)
	var out []int
	for _, e := range list {
		n, ok := number(e.Name())
		if !ok {
			continue
		}
		m, err := readMember(p.dir, n)
		if err == nil && slices.Contains(m.Names, name) && (n == p.number || alive(socket(p.dir, n))) {
			out = append(out, n)
		}
	}
	return out
}

// Close leaves the network.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	unlock, lerr := lock(ctx, p.dir, false)
	// The number is this member's until the socket is closed.
	err := errors.Join(remove(p.dir, p.number), p.conn.Close())
	if lerr == nil {
		removeEmpty(p.dir)
		unlock()
	} else if !errors.Is(lerr, os.ErrNotExist) {
		err = errors.Join(err, lerr)
	}
	if err != nil {
		return fmt.Errorf("leave the network of %s: %w", p.dir, err)
	}
	return nil
}

// Clean removes what members that have been killed have left in dir, and dir
// itself if nobody is there.
func Clean(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	unlock, err := lock(ctx, dir, false)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean the network of %s: %w", dir, err)
	}
	defer unlock()
	_, err = sweep(dir)
	removeEmpty(dir)
	return err
}

// removeEmpty removes the directory unless somebody is there. Who waits for its
// lock notices (lock).
func removeEmpty(dir string) { _ = os.Remove(dir) }

// sweep removes what members have left that are no more, and returns the numbers
// of the others. The directory must be locked.
func sweep(dir string) ([]int, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var used []int
	for _, e := range list {
		n, ok := number(strings.TrimSuffix(e.Name(), nameSuffix))
		switch {
		case !ok || slices.Contains(used, n):
		case alive(socket(dir, n)):
			used = append(used, n)
		default:
			if err := remove(dir, n); err != nil {
				return nil, err
			}
		}
	}
	return used, nil
}

// remove removes a member's files.
func remove(dir string, n int) error {
	for _, f := range []string{socket(dir, n), socket(dir, n) + nameSuffix} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func socket(dir string, n int) string { return filepath.Join(dir, strconv.Itoa(n)) }

// number is the member of which a file is the socket.
func number(file string) (int, bool) {
	n, err := strconv.Atoi(file)
	return n, err == nil && n >= FirstNumber && n <= MaxNumber && strconv.Itoa(n) == file
}

func readMember(dir string, n int) (Member, error) {
	f, err := os.Open(socket(dir, n) + nameSuffix)
	if err != nil {
		return Member{}, err
	}
	defer f.Close()
	var m Member
	b, err := io.ReadAll(io.LimitReader(f, maxMember))
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	return m, err
}
