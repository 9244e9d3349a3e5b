package tapns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Open opens a namespace that somebody else has made, with interfaces for the
// container, and makes n tap devices in it, which are down. Close leaves it as it
// was. One machine at a time can have it.
func Open(path string, n int) (*Namespace, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	s := &Namespace{NS: f, borrowed: true}
	err = s.take(n)
	if err != nil {
		s.CloseTaps()
		_ = f.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return s, nil
}

func (s *Namespace) take(n int) error {
	h, err := s.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	taken, err := hasTaps(h)
	if err != nil {
		return err
	}
	if taken {
		return errTaken
	}
	if err := undo(h); err != nil { // what a shim has left that was killed
		return err
	}
	err = inThread(func() error {
		if err := netns.Set(netns.NsHandle(s.NS.Fd())); err != nil {
			return err
		}
		return s.addTaps(n)
	})
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return errTaken
	}
	return err
}

var errTaken = errors.New("it is the network of another container, with which it cannot be shared: each has a machine of its own")

// Count returns how many interfaces a container would find in a namespace that
// somebody else has made.
func Count(path string) (int, error) {
	f, err := open(path)
	if err != nil {
		return 0, err
	}
	s := &Namespace{NS: f}
	defer s.Close()
	h, err := s.handle()
	if err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer h.Close()
	links, err := containerLinks(h)
	if err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return len(links), nil
}

// undoTimeout is how long a machine may take to end, and its tap devices with it.
const undoTimeout = 3 * time.Second

// Undo removes what Join has done in somebody else's namespace for a machine that
// was killed. If another has it by now, nothing is done, nor if it is gone.
func Undo(path string) error {
	f, err := open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	s := &Namespace{NS: f}
	defer s.Close()
	h, err := s.handle()
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer h.Close()
	for end := time.Now().Add(undoTimeout); ; time.Sleep(10 * time.Millisecond) {
		taken, err := hasTaps(h)
		if err == nil && taken && time.Now().Before(end) {
			continue
		}
		if err == nil && !taken {
			err = undo(h)
		}
		if err != nil {
			return fmt.Errorf("network namespace %s: %w", path, err)
		}
		return nil
	}
}

// errNoNamespace is a file of another kind.
var errNoNamespace = errors.New("it is no network namespace")

// open opens a network namespace. It must not be the host's: the host would lose
// its interfaces to the container.
func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = f.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, errNoNamespace)
	}
	st, err := f.Stat()
	// Not /proc/self, which is the process's first thread: that cannot end, and stays
	// where inThread has brought it.
	for _, own := range []string{"/proc/thread-self/ns/net", "/proc/1/ns/net"} {
		if host, herr := os.Stat(own); err == nil && herr == nil && os.SameFile(host, st) {
			err = errors.New("it is the host's own: use --net=host")
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return f, nil
}

// hasTaps tells whether a machine has the namespace.
func hasTaps(h *netlink.Handle) (bool, error) {
	links, err := h.LinkList()
	if err != nil {
		return false, fmt.Errorf("list its interfaces: %w", err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, tapPrefix) {
			return true, nil
		}
	}
	return false, nil
}

// undo removes the redirections that join has made.
func undo(h *netlink.Handle) error {
	links, err := containerLinks(h)
	if err != nil {
		return err
	}
	for _, l := range links {
		filters, err := h.FilterList(l, ingressHandle)
		if err != nil {
			return fmt.Errorf("list the filters of %s: %w", l.Attrs().Name, err)
		}
		for _, f := range filters {
			if f.Attrs().Priority != filterPriority {
				continue
			}
			if err := h.QdiscDel(ingress(l)); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove the ingress queue of %s: %w", l.Attrs().Name, err)
			}
			break
		}
	}
	return nil
}
