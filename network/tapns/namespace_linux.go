package tapns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// tapPrefix begins the names of the VMM's devices; no plugin has such names.
const tapPrefix = "applevm"

// firstIndex is the number of the first tap device. It is higher than those that
// plugins' interfaces get, as clients take the first one for the container's
// (nerdctl inspect).
const firstIndex = 0x10000

// New makes a namespace with n tap devices, which are down.
func New(n int) (_ *Namespace, err error) {
	s := &Namespace{}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	err = inThread(func() error {
		ns, err := netns.New()
		if err != nil {
			return err
		}
		s.NS = os.NewFile(uintptr(ns), "network namespace")
		unix.CloseOnExec(int(ns))
		return s.addTaps(n)
	})
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return s, nil
}

// inThread calls f, which may go to another namespace, in a thread of its own.
func inThread(f func() error) error {
	result := make(chan error)
	go func() {
		// The thread ends with this goroutine, as it is not unlocked: nothing else
		// may run in the other namespace.
		runtime.LockOSThread()
		result <- f()
	}()
	err := <-result
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: networks of the client's need a shim that runs as root", err)
	}
	return err
}

// addTaps makes tap devices in the thread's namespace.
func (s *Namespace) addTaps(n int) error {
	for i := range n {
		tap, err := openTap(fmt.Sprint(tapPrefix, i), firstIndex+i)
		if err != nil {
			return err
		}
		s.Taps = append(s.Taps, tap)
	}
	return nil
}

// openTap makes a tap device in the thread's namespace, which lives as long as
// the file is open (Documentation/networking/tuntap.rst).
func openTap(name string, index int) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	err = unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, index)
	var req *unix.Ifreq
	if err == nil {
		req, err = unix.NewIfreq(name)
	}
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make the tap device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Close lets go of the namespace, which ends when the VMM has ended too, if it is not
// somebody else's: that is left as it was.
func (s *Namespace) Close() {
	s.CloseTaps()
	if s.NS == nil {
		return
	}
	if s.borrowed {
		if h, err := s.handle(); err == nil {
			_ = undo(h) // the next machine tries again
			h.Close()
		}
	}
	_ = s.NS.Close()
}

func (s *Namespace) handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(s.NS.Fd()), unix.NETLINK_ROUTE)
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: networks of the client's need a shim that runs as root", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	return h, nil
}

// containerLinks are the namespace's interfaces that are the container's, in the
// order in which they were made.
func containerLinks(h *netlink.Handle) ([]netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces of the network namespace: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool {
		a := l.Attrs()
		return a.Flags&net.FlagLoopback != 0 || a.Flags&net.FlagUp == 0 || strings.HasPrefix(a.Name, tapPrefix)
	}), nil
}

// Join joins the namespace's interfaces, in the order in which they were made, to
// its n tap devices, and returns them. There may be fewer interfaces than taps, not more.
func (s *Namespace) Join(n int) ([]Interface, error) {
	h, err := s.handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := containerLinks(h)
	if err != nil {
		return nil, err
	}
	if len(links) > n {
		return nil, fmt.Errorf("interface %s is one more than the %d networks that the container asks for", links[n].Attrs().Name, n)
	}
	var out []Interface
	for k, l := range links {
		tap, err := h.LinkByName(fmt.Sprint(tapPrefix, k))
		if err != nil {
			return nil, fmt.Errorf("find the tap device for %s: %w", l.Attrs().Name, err)
		}
		i, err := describe(h, l)
		if err == nil {
			err = join(h, l, tap)
		}
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", i.Name, err)
		}
		out = append(out, i)
	}
	return out, nil
}

// describe says what the guest needs to know of an interface.
func describe(h *netlink.Handle, l netlink.Link) (Interface, error) {
	a := l.Attrs()
	i := Interface{Name: a.Name, MAC: a.HardwareAddr, MTU: a.MTU}
	addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return i, fmt.Errorf("list its addresses: %w", err)
	}
	for _, addr := range addrs {
		if !addr.IP.IsLinkLocalUnicast() {
			i.Addresses = append(i.Addresses, addr.IPNet)
		}
	}
	routes, err := h.RouteList(l, netlink.FAMILY_ALL)
	if err != nil {
		return i, fmt.Errorf("list its routes: %w", err)
	}
	for _, r := range routes {
		// The guest's kernel makes those of its addresses itself.
		if r.Protocol == unix.RTPROT_KERNEL || r.Type != unix.RTN_UNICAST || r.Dst == nil || r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast() {
			continue
		}
		i.Routes = append(i.Routes, Route{r.Dst, r.Gw})
	}
	return i, nil
}

// ingressHandle is the handle that an ingress queue has (tc(8)).
var ingressHandle = netlink.MakeHandle(0xffff, 0)

// filterPriority marks the redirections that are ours: a number that others hardly
// use.
const filterPriority = 0x6176

func ingress(l netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: ingressHandle, Parent: netlink.HANDLE_INGRESS,
	}}
}

// join redirects what comes in on each of two interfaces to the other.
func join(h *netlink.Handle, l, tap netlink.Link) error {
	if err := h.LinkSetMTU(tap, l.Attrs().MTU); err != nil {
		return fmt.Errorf("set the tap device's MTU: %w", err)
	}
	if err := h.LinkSetUp(tap); err != nil {
		return fmt.Errorf("bring up the tap device: %w", err)
	}
	for _, way := range [][2]netlink.Link{{l, tap}, {tap, l}} {
		from, to := way[0].Attrs(), way[1].Attrs()
		if err := h.QdiscAdd(ingress(way[0])); err != nil {
			return fmt.Errorf("add the ingress queue of %s: %w", from.Name, err)
		}
		all := &netlink.U32{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: from.Index, Parent: ingressHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
			},
			Actions: []netlink.Action{netlink.NewMirredAction(to.Index)},
		}
		if err := h.FilterAdd(all); err != nil {
			return fmt.Errorf("redirect from %s to %s: %w", from.Name, to.Name, err)
		}
	}
	return nil
}
