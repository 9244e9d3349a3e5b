package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// interfaceTimeout is how long an interface may take to appear: the kernel may
// still be looking at its devices.
const interfaceTimeout = 10 * time.Second

// iface is a checked guestv1.Interface.
type iface struct {
	mac    net.HardwareAddr
	newMAC net.HardwareAddr // or nil
	name   string
	mtu    int
	addrs  []netlink.Addr
	routes []netlink.Route // without the link
	dhcp   bool
	resolv string // the file that gets DHCP's nameservers
}

// parseInterfaces checks what the host asks for.
func parseInterfaces(list []*guestv1.Interface) ([]iface, error) {
	if len(list) > api.MaxInterfaces {
		return nil, invalid("%d network interfaces, more than %d", len(list), api.MaxInterfaces)
	}
	var out []iface
	for _, i := range list {
		f, err := parseInterface(i)
		if err != nil {
			return nil, invalid("network interface %q: %w", i.GetName(), err)
		}
		out = append(out, f)
	}
	return out, nil
}

func parseInterface(i *guestv1.Interface) (iface, error) {
	f := iface{mac: i.GetMac(), newMAC: i.GetNewMac(), name: i.GetName(), mtu: int(i.GetMtu()), dhcp: i.GetDhcp(), resolv: i.GetResolvConf()}
	switch {
	case len(f.mac) != 6:
		return f, fmt.Errorf("address %x is no MAC address", i.GetMac())
	case len(f.newMAC) != 0 && len(f.newMAC) != 6:
		return f, fmt.Errorf("address %x is no MAC address", i.GetNewMac())
	case f.name == "" || len(f.name) >= unix.IFNAMSIZ:
		return f, fmt.Errorf("the name is not 1 to %d bytes long", unix.IFNAMSIZ-1)
	case i.GetMtu() > 65535:
		return f, fmt.Errorf("MTU %d is more than 65535", i.GetMtu())
	case len(i.GetAddresses()) > api.MaxInterfaceEntries || len(i.GetRoutes()) > api.MaxInterfaceEntries:
		return f, fmt.Errorf("more than %d addresses or routes", api.MaxInterfaceEntries)
	}
	for _, a := range i.GetAddresses() {
		ip, n, err := net.ParseCIDR(a)
		if err != nil {
			return f, err
		}
		addr := netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: n.Mask}}
		if ip.To4() == nil {
			// Nobody else can have it, and the container is not to wait for a proof.
			addr.Flags = unix.IFA_F_NODAD
		}
		f.addrs = append(f.addrs, addr)
	}
	for _, r := range i.GetRoutes() {
		_, dst, err := net.ParseCIDR(r.GetDestination())
		if err != nil {
			return f, err
		}
		route := netlink.Route{Dst: dst, Scope: netlink.SCOPE_LINK}
		if r.GetGateway() != "" {
			route.Scope = netlink.SCOPE_UNIVERSE
			if route.Gw = net.ParseIP(r.GetGateway()); route.Gw == nil {
				return f, fmt.Errorf("gateway %q of the route to %s is no IP address", r.GetGateway(), dst)
			}
		}
		f.routes = append(f.routes, route)
	}
	return f, nil
}

// setNetwork arranges for the container's interfaces: in the machine's network
// namespace at once, in one of the container's own when libcontainer has made it,
// before the container's kernel parameters are set.
func (c *container) setNetwork(ctx context.Context, config *configs.Config, list []*guestv1.Interface) error {
	ifaces, err := parseInterfaces(list)
	if err != nil || len(ifaces) == 0 {
		return err
	}
	machine, err := netns.Get()
	if err != nil {
		return fmt.Errorf("the machine's network namespace: %w", err)
	}
	if !config.Namespaces.IsPrivate(configs.NEWNET) {
		defer func() { _ = machine.Close() }()
		return c.setInterfaces(ctx, ifaces, machine, machine)
	}
	if config.Hooks == nil {
		config.Hooks = configs.Hooks{}
	}
	config.Hooks[configs.CreateRuntime] = append(config.Hooks[configs.CreateRuntime], configs.NewFunctionHook(func(s *specs.State) error {
		defer func() { _ = machine.Close() }()
		own, err := netns.GetFromPid(s.Pid)
		if err != nil {
			return fmt.Errorf("the container's network namespace: %w", err)
		}
		defer func() { _ = own.Close() }()
		return c.setInterfaces(ctx, ifaces, machine, own)
	}))
	return nil
}

// setInterfaces brings interfaces from one network namespace into another (or
// leaves them, if that is the same) and sets them up there.
func (c *container) setInterfaces(ctx context.Context, list []iface, from, to netns.NsHandle) error {
	source, err := netlink.NewHandleAt(from, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open the machine's network configuration: %w", err)
	}
	defer source.Close()
	target, err := netlink.NewHandleAt(to, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open the container's network configuration: %w", err)
	}
	defer target.Close()
	// All of them first get names that no other has: the kernel finds devices in any
	// order, so that one's name may be what another is to be called.
	for i, f := range list {
		if err := f.move(ctx, source, to, fmt.Sprintf("moving%d", i)); err != nil {
			return fmt.Errorf("network interface %s (%s): %w", f.name, f.mac, err)
		}
	}
	for _, f := range list {
		err := f.set(ctx, target)
		if err == nil && f.dhcp {
			err = c.lease(ctx, f, to)
		}
		if err != nil {
			return fmt.Errorf("network interface %s (%s): %w", f.name, f.mac, err)
		}
	}
	return nil
}

// lease has an interface get its address by DHCP, until the container is released.
func (c *container) lease(ctx context.Context, f iface, ns netns.NsHandle) error {
	own, err := unix.FcntlInt(uintptr(ns), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	ns = netns.NsHandle(own) // for later, when it changes
	d, err := startDHCP(ctx, ns, f.name, f.mac, func(l lease) error {
		h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName(f.name)
		if err != nil {
			return err
		}
		if err := setLease(h, link, l); err != nil || f.resolv == "" {
			return err
		}
		return c.setFile(f.resolv, l.resolvConf())
	})
	if err != nil {
		_ = ns.Close()
		return err
	}
	d.ns = ns
	c.leases = append(c.leases, d)
	return nil
}

func (f iface) move(ctx context.Context, source *netlink.Handle, to netns.NsHandle, name string) error {
	link, err := findLink(ctx, source, f.mac)
	if err != nil {
		return err
	}
	// An interface has to be down for another name.
	if err := source.LinkSetDown(link); err != nil {
		return fmt.Errorf("take it down: %w", err)
	}
	if err := source.LinkSetName(link, name); err != nil {
		return fmt.Errorf("rename %s: %w", link.Attrs().Name, err)
	}
	if err := source.LinkSetNsFd(link, int(to)); err != nil {
		return fmt.Errorf("move it into the container: %w", err)
	}
	return nil
}

func (f iface) set(ctx context.Context, target *netlink.Handle) error {
	link, err := findLink(ctx, target, f.mac) // it may have another number there
	if err != nil {
		return err
	}
	if link.Attrs().Name != f.name {
		if err := target.LinkSetName(link, f.name); err != nil {
			return fmt.Errorf("rename %s: %w", link.Attrs().Name, err)
		}
	}
	if len(f.newMAC) > 0 {
		if err := target.LinkSetHardwareAddr(link, f.newMAC); err != nil {
			return fmt.Errorf("give it the address %s: %w", f.newMAC, err)
		}
	}
	if f.mtu != 0 {
		if err := target.LinkSetMTU(link, f.mtu); err != nil {
			return fmt.Errorf("set its MTU to %d: %w", f.mtu, err)
		}
	}
	if err := target.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	for _, a := range f.addrs {
		if err := target.AddrReplace(link, &a); err != nil {
			return fmt.Errorf("add address %s: %w", a.IPNet, err)
		}
	}
	for _, r := range f.routes {
		r.LinkIndex = link.Attrs().Index
		if err := target.RouteReplace(&r); err != nil {
			return fmt.Errorf("add the route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

// findLink returns the interface with a MAC address, waiting for it.
func findLink(ctx context.Context, h *netlink.Handle, mac net.HardwareAddr) (netlink.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, interfaceTimeout)
	defer cancel()
	for {
		links, err := h.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, err
		}
		for _, l := range links {
			if bytes.Equal(l.Attrs().HardwareAddr, mac) {
				return l, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, errors.New("the machine has no interface with this address")
		case <-time.After(2 * time.Millisecond):
		}
	}
}
