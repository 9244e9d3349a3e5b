package lan

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/applevm/applevm/internal/shortdir"
)

var subnet = netip.MustParsePrefix("192.168.127.0/24")

func member(t *testing.T, dir string, names ...string) *Port {
	t.Helper()
	p, err := Join(t.Context(), dir, Member{Names: names, Subnet: subnet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func receive(t *testing.T, p *Port) string {
	t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	b := make([]byte, 100)
	n, err := p.Receive(b)
	if err != nil {
		t.Error(err)
	}
	return string(b[:n])
}

func TestFramesAndNames(t *testing.T) {
	dir := filepath.Join(shortdir.New(t), "n")
	a, b, c := member(t, dir, "a", "all"), member(t, dir, "b", "all"), member(t, dir, "c")
	if a.Number() != 2 || b.Number() != 3 || c.Number() != 4 {
		t.Errorf("numbers %d, %d, %d", a.Number(), b.Number(), c.Number())
	}
	a.Send(3, []byte("to b"))
	a.Send(4, []byte("to c"))
	a.Send(99, []byte("to nobody"))
	a.Send(-1, []byte("to nobody"))
	if got := receive(t, b) + ", " + receive(t, c); got != "to b, to c" {
		t.Errorf("received %s", got)
	}
	for name, want := range map[string][]int{"a": {2}, "B": {3}, "all": {2, 3}, "none": nil, "": nil} {
		got := c.Lookup(name)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%q is %v, want %v", name, got, want)
		}
	}
	// A successor gets the number, and what is sent to it, at once.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got := c.Lookup("b"); got != nil {
		t.Errorf("a member that has left is still found: %v", got)
	}
	next := member(t, dir, "d")
	a.Send(3, []byte("to d"))
	if got := receive(t, next); next.Number() != 3 || got != "to d" {
		t.Errorf("member %d received %q", next.Number(), got)
	}
	for _, p := range []*Port{a, c, next} {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory outlives its members: %v", err)
	}
}

// A member that does not take what it is sent holds up nobody, and not much waits
// for it.
func TestMemberThatDoesNotRead(t *testing.T) {
	dir := filepath.Join(shortdir.New(t), "n")
	a, deaf, b := member(t, dir), member(t, dir), member(t, dir)
	frame := make([]byte, 65534)
	for range 10000 {
		a.Send(deaf.Number(), frame)
	}
	if q := a.queued.Load(); q > (maxFrames+1)*int64(len(frame)) {
		t.Errorf("%d bytes wait", q)
	}
	a.Send(b.Number(), []byte("to b"))
	if got := receive(t, b); got != "to b" {
		t.Errorf("received %q", got)
	}
}

const victimEnv = "APPLEVM_LAN_VICTIM"

// TestKilledMember: what a member leaves that was killed is found and removed: by
// who sends to it, who joins, and by Clean, which removes the directory too.
func TestKilledMember(t *testing.T) {
	if dir := os.Getenv(victimEnv); dir != "" {
		p, err := Join(t.Context(), dir, Member{Names: []string{"victim"}, Subnet: subnet})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("joined as %d\n", p.Number())
		select {}
	}
	dir := filepath.Join(shortdir.New(t), "n")
	killed := func() {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledMember$")
		cmd.Env = append(os.Environ(), victimEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if line != "joined as 2\n" {
			t.Fatalf("the victim says %q", line)
		}
		if _, err := os.Stat(socket(dir, 2)); err != nil {
			t.Fatal(err)
		}
	}
	killed()
	first := member(t, dir, "first")
	if first.Number() != 2 {
		t.Errorf("the number of a member that was killed is not used again: %d", first.Number())
	}
	second := member(t, dir, "second")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	killed()
	if got := second.Lookup("victim"); got != nil {
		t.Errorf("a member that was killed is found: %v", got)
	}
	second.Send(2, []byte("x"))
	for stop := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		left, _ := filepath.Glob(socket(dir, 2) + "*")
		if len(left) == 0 {
			break
		}
		if time.Now().After(stop) {
			t.Fatalf("left behind: %q", left)
		}
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	killed()
	if err := Clean(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if err := Clean(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

// Members that come and go at the same time have numbers of their own.
func TestCrowd(t *testing.T) {
	dir := filepath.Join(shortdir.New(t), "n")
	var mu sync.Mutex
	held := map[int]bool{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 5 {
				p, err := Join(t.Context(), dir, Member{Subnet: subnet})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if held[p.Number()] {
					t.Errorf("number %d is given twice", p.Number())
				}
				held[p.Number()] = true
				mu.Unlock()
				mu.Lock()
				delete(held, p.Number())
				mu.Unlock()
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	dir := filepath.Join(shortdir.New(t), "n")
	small := netip.MustParsePrefix("10.0.0.0/29") // .2 to .5
	refused := func(m Member, want string) {
		t.Helper()
		p, err := Join(t.Context(), dir, m)
		if err == nil {
			_ = p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	for range 4 {
		p, err := Join(t.Context(), dir, Member{Subnet: small})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
	}
	refused(Member{Subnet: small}, "all its 4 addresses are taken")
	refused(Member{Subnet: subnet}, "have the subnet 10.0.0.0/29, this one would have 192.168.127.0/24")
	dir = shortdir.New(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	refused(Member{Subnet: subnet}, "is open to other users")
}
