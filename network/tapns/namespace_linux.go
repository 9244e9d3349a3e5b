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

// Namespace is a network namespace with tap devices for a VMM.
type Namespace struct {
	// NS is the namespace.
	NS *os.File
	// Taps are the VMM's ends, with virtio-net headers (IFF_VNET_HDR).
	Taps []*os.File
}

// New makes a namespace with n tap devices, which are down.
func New(n int) (_ *Namespace, err error) {
	s := &Namespace{}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	result := make(chan error)
	go func() {
		// The thread ends with this goroutine, as it is not unlocked: nothing else
		// may run in the new namespace.
		runtime.LockOSThread()
		result <- s.make(n)
	}()
	if err := <-result; err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: networks of the client's need a shim that runs as root", err)
		}
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return s, nil
}

// make leaves the calling thread in the new namespace.
func (s *Namespace) make(n int) error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	s.NS = os.NewFile(uintptr(ns), "network namespace")
	unix.CloseOnExec(int(ns))
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

// CloseTaps closes this process's copies of the VMM's ends.
func (s *Namespace) CloseTaps() {
	for _, t := range s.Taps {
		_ = t.Close()
	}
	s.Taps = nil
}

// Close lets go of the namespace, which ends when the VMM has ended too.
func (s *Namespace) Close() {
	s.CloseTaps()
	if s.NS != nil {
		_ = s.NS.Close()
	}
}

// Interface is an interface of the namespace, as the guest is to have it.
type Interface struct {
	Name string
	MAC  net.HardwareAddr
	MTU  int
	// Addresses are with their networks.
	Addresses []*net.IPNet
	// Routes without a gateway (nil) are on the link.
	Routes []Route
}

// Route is one of an interface's routes.
type Route struct {
	Destination *net.IPNet
	Gateway     net.IP
}

// Join joins the namespace's interfaces, in the order in which they were made, to
// its n tap devices, and returns them. There may be fewer interfaces than taps, not more.
func (s *Namespace) Join(n int) ([]Interface, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(s.NS.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces of the network namespace: %w", err)
	}
	links = slices.DeleteFunc(links, func(l netlink.Link) bool {
		a := l.Attrs()
		return a.Flags&net.FlagLoopback != 0 || a.Flags&net.FlagUp == 0 || strings.HasPrefix(a.Name, tapPrefix)
	})
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
		ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: from.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}}
		if err := h.QdiscAdd(ingress); err != nil {
			return fmt.Errorf("add the ingress queue of %s: %w", from.Name, err)
		}
		all := &netlink.U32{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: from.Index, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			Actions: []netlink.Action{netlink.NewMirredAction(to.Index)},
		}
		if err := h.FilterAdd(all); err != nil {
			return fmt.Errorf("redirect from %s to %s: %w", from.Name, to.Name, err)
		}
	}
	return nil
}
