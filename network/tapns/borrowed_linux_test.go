package tapns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestBorrowed: a namespace of somebody else's serves one machine after another and
// is left as it was, by one that was killed too.
func TestBorrowed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root: run this with sudo")
	}
	theirs, err := New(0)
	must(t, err)
	t.Cleanup(theirs.Close)
	path := fmt.Sprintf("/proc/self/fd/%d", theirs.NS.Fd())
	h := handle(t, theirs)
	must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}))
	eth0, err := h.LinkByName("eth0")
	must(t, err)
	must(t, h.LinkSetUp(eth0))
	if n, err := Count(path); err != nil || n != 1 {
		t.Errorf("%d interfaces, %v", n, err)
	}
	redirected := func() bool {
		t.Helper()
		list, err := h.FilterList(eth0, ingressHandle)
		must(t, err)
		return len(list) > 0
	}
	use := func() *Namespace {
		t.Helper()
		s, err := Open(path, 1)
		must(t, err)
		got, err := s.Join(1)
		must(t, err)
		if len(got) != 1 || got[0].Name != "eth0" || !redirected() {
			t.Errorf("joined %v", got)
		}
		return s
	}
	s := use()
	if _, err := Open(path, 1); !errors.Is(err, errTaken) {
		t.Errorf("a second machine: %v", err)
	}
	s.Close()
	if redirected() {
		t.Error("the redirection is still there")
	}
	for _, again := range []bool{false, true} {
		s = use()
		s.CloseTaps() // all that the kernel does for one that is killed
		must(t, s.NS.Close())
		if !redirected() {
			t.Error("the redirection has gone by itself")
		}
		if again {
			use().Close()
		} else {
			must(t, Undo(path))
		}
		if redirected() {
			t.Errorf("the redirection of a killed machine is still there (%v)", again)
		}
	}
	must(t, Undo(filepath.Join(t.TempDir(), "none")))
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for path, want := range map[string]string{
		file: "is no network namespace", "/proc/thread-self/ns/net": "the host's own", "/proc/self/ns/mnt": "is no network namespace", "/nonexistent": "no such file",
	} {
		if _, err := Open(path, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v does not say %q", path, err, want)
		}
	}
}
