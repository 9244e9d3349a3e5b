package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/applevm/applevm/vmm"
)

// Numbers of the files that QEMU inherits (os/exec puts ExtraFiles after stderr).
const (
	vsockFD = 3
	qmpFD   = 4
	jailFD  = 5
	// shareFD is the first share's; the others follow, and the NICs' after them.
	shareFD = 6
)

// shareQueue is the size of a share's queues: Linux makes requests of as many pages
// as fit (fs/fuse/virtio_fs.c), at most 256 (FUSE_MAX_MAX_PAGES).
const shareQueue = 1024

// jailPath is how QEMU names the directory that it inherits.
var jailPath = "/proc/self/fd/" + strconv.Itoa(jailFD)

// Slots that a machine type has.
const (
	// microvmTransports is what microvm offers without ACPI: its virtio-mmio
	// transports are wired to the interrupts 5 to 12 of one I/O APIC
	// (hw/i386/microvm.c, VIRTIO_NUM_TRANSPORTS).
	microvmTransports = 8
	// virtTransports is the number of virtio-mmio transports of arm64's virt
	// (hw/arm/virt.c, NUM_VIRTIO_TRANSPORTS).
	virtTransports = 32
	// pciSlots leaves out the host bridge in slot 0 and q35's chipset in 31.
	pciSlots     = 30
	pciFunctions = 8
	// ownDevices are vsock and rng.
	ownDevices = 2

	// maxDevices is how many disks, shares and NICs a machine has at most.
	maxDevices = pciSlots*pciFunctions - ownDevices

	// msixDisks is how many disks on PCI interrupt by messages of their own, of which
	// a virtio device takes two (virtio 1.2, 4.1.4.3: configuration and queue). There
	// are some 200 on one x86 processor, and 64 in all on arm64's virt with a
	// GICv2 (hw/arm/virt.c, NUM_GICV2M_SPIS); a device that gets none does not work at
	// all. The other disks share PCI's four interrupt lines.
	msixDisks = 24
)

// plan is all that decides QEMU's command line.
type plan struct {
	vmm.Config
	binary string
	accel  string // "kvm", "hvf" or "tcg"
	// tscKHz is the frequency of the host's time stamp counter, 0 if unknown.
	tscKHz int
	// busy says that the host may keep a processor from the guest for long.
	busy bool
	// mmioParameter says that the kernel takes virtio_mmio.device=, by which
	// microvm tells it of devices that no ACPI table describes.
	mmioParameter bool
	// bare leaves out what needs inherited files: vsock, shares and the monitor. The
	// accelerator probe boots so.
	bare bool
	// jail is the option by which QEMU changes its root to the directory jailFD;
	// empty keeps the host's.
	jail string
}

// machineKind is one of the machine types that we use.
type machineKind struct {
	name string // QEMU's -machine value
	bus  string // how virtio devices attach: "device" (mmio) or "pci"
	// acpi says that the guest finds its devices by ACPI. microvm then has no
	// legacy timer (ACPI's hardware-reduced mode).
	acpi bool
}

// kind chooses the smallest machine that holds the devices and whose devices the
// kernel finds: microvm and virtio-mmio boot fastest, PCI has room for more.
func (p *plan) kind() machineKind {
	n := len(p.Disks) + len(p.Shares) + len(p.NICs) + ownDevices
	virt := "virt"
	if p.Nested && p.accel == "tcg" { // KVM itself cannot on most hosts
		virt += ",virtualization=on"
	}
	q35 := machineKind{"q35,usb=off,smbus=off,sata=off,vmport=off", "pci", true}
	switch {
	case p.Arch == archARM64 && n <= virtTransports:
		return machineKind{name: virt, bus: "device"}
	case p.Arch == archARM64:
		return machineKind{name: virt, bus: "pci"}
	case p.mmioParameter && n <= microvmTransports:
		return machineKind{name: "microvm,acpi=off", bus: "device"}
	case p.mmioParameter || p.accel != "tcg" || p.tscKHz == 0 || p.busy:
		// A kernel of that kind may do without ACPI, which microvm's PCI needs.
		// And without tsc_early_khz, a guest on microvm with ACPI has nothing to
		// calibrate its clock by: its boot stops. Its timer it measures against that
		// clock alone; if the host is busy just then the timer is wrong, or given up, and
		// the guest waits for ever. q35 has a second clock, ACPI's, which puts that right
		// (calibrate_APIC_clock in the kernel's arch/x86/kernel/apic/apic.c).
		return q35
	case n <= microvmTransports:
		return machineKind{"microvm,acpi=on", "device", true}
	}
	return machineKind{"microvm,acpi=on,pcie=on", "pci", true}
}

// args is QEMU's command line without its name.
func (p *plan) args() []string {
	k := p.kind()
	mib := strconv.FormatInt(p.Memory>>20, 10) + "M"
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-name", "guest=" + escape(p.Name),
		// The guest's devices are attack surface: QEMU may neither gain
		// privileges nor start programs.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", k.name + ",memory-backend=mem",
		"-accel", p.accel,
		"-cpu", p.cpu(),
		"-smp", strconv.Itoa(p.CPUs),
		"-m", mib,
		// Shared, because the vsock device and the file server in our process read it.
		"-object", "memory-backend-memfd,id=mem,size=" + mib + ",share=on",
		"-kernel", p.Kernel, "-initrd", p.Initrd,
		"-append", strings.Join(p.kernelParameters(), " "),
		"-chardev", "stdio,id=con,signal=off", "-serial", "chardev:con",
		"-object", "rng-builtin,id=rng",
	}
	if strings.HasPrefix(k.name, "q35") {
		// Firmware looks at no disk: with a hundred of them it runs out of memory.
		a = append(a, "-boot", "strict=on")
	}
	slots := pciAllocator{on: k.bus == "pci"}
	a = append(a, "-device", "virtio-rng-"+k.bus+",rng=rng"+slots.next())
	for i, d := range p.Disks {
		node := "disk" + strconv.Itoa(i)
		a = append(a, "-blockdev", blockdev(node, d),
			"-device", "virtio-blk-"+k.bus+",drive="+node+",serial="+d.ID+slots.next()+p.interrupts(k, i))
	}
	if p.bare {
		return a
	}
	fd := shareFD + len(p.Shares)
	for i, n := range p.NICs {
		id := "net" + strconv.Itoa(i)
		device := fmt.Sprintf("virtio-net-%s,netdev=%s,mac=%s,host_mtu=%d", k.bus, id, n.MAC, n.MTU)
		if k.bus == "pci" {
			device += ",romfile=" // no firmware boots from it
		}
		backend := fmt.Sprintf("dgram,id=%s,local.type=fd,local.str=%d", id, fd)
		switch {
		case n.NAT:
			backend = "user,id=" + id
		case n.Tap:
			backend = fmt.Sprintf("tap,id=%s,fd=%d,vhost=off", id, fd)
			fd++
		default:
			fd++
		}
		a = append(a, "-netdev", backend, "-device", device+slots.next())
	}
	switch p.jail {
	case "-chroot":
		a = append(a, p.jail, jailPath)
	case "-run-with":
		a = append(a, p.jail, "chroot="+jailPath)
	}
	for i, s := range p.Shares {
		id := "share" + strconv.Itoa(i)
		a = append(a, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", id, shareFD+i),
			"-device", fmt.Sprintf("vhost-user-fs-%s,chardev=%s,tag=%s,queue-size=%d", k.bus, id, s.Tag, shareQueue)+slots.address())
	}
	// vsock is the last device: when QEMU asks for its configuration, all
	// others have been made.
	return append(a,
		"-chardev", fmt.Sprintf("socket,id=mon,fd=%d,server=on,wait=off", qmpFD), "-mon", "chardev=mon,mode=control",
		"-chardev", fmt.Sprintf("socket,id=vsock,fd=%d", vsockFD),
		"-device", "vhost-user-vsock-"+k.bus+",chardev=vsock"+slots.next())
}

// interrupts says how disk i interrupts, where not in the way of its bus: messages
// are for the last, the topmost layers and the writable disk, which do the most.
func (p *plan) interrupts(k machineKind, i int) string {
	if k.bus == "pci" && i < len(p.Disks)-msixDisks {
		return ",vectors=0"
	}
	return ""
}

func (p *plan) cpu() string {
	cpu := "max"
	switch {
	case p.Arch == archARM64 && p.accel == "tcg":
		// The architecture's own pointer authentication is several times
		// slower to emulate than QEMU's implementation-defined one.
		cpu += ",pauth-impdef=on"
	case p.Arch == archAMD64 && p.accel == "tcg":
		// TCG runs a string instruction element by element. A kernel that is told
		// that "rep movsb" is fast copies and clears pages by bytes, eight times
		// as many elements as without.
		cpu += ",-erms,-fsrm"
	}
	if p.Arch == archAMD64 && !p.Nested {
		// What the host's kernel does for machines in machines is a large part of what a
		// guest could attack.
		cpu += ",-vmx,-svm"
	}
	return cpu
}

// kernelParameters are the driver's own and the caller's.
func (p *plan) kernelParameters() []string {
	console := "console=ttyS0"
	if p.Arch == archARM64 {
		console = "console=ttyAMA0"
	}
	// A panic ends the machine (-no-reboot), as does any other reset; reboot=t
	// is the triple fault, the one reset that every x86 machine type has.
	k := []string{console, "quiet", "panic=-1", "cryptomgr.notests"}
	if p.Arch != archARM64 {
		k = append(k, "reboot=t")
		k = append(k, p.clockParameters()...)
	}
	return append(k, p.Cmdline...)
}

// clockParameters spare a guest under TCG the calibration of its time stamp
// counter, which is the host's: it takes long and goes wrong on a loaded host.
func (p *plan) clockParameters() []string {
	if p.accel != "tcg" || p.tscKHz == 0 {
		return nil
	}
	k := []string{"tsc_early_khz=" + strconv.Itoa(p.tscKHz), "tsc=reliable", "no_timer_check"}
	if p.CPUs == 1 && !p.kind().acpi {
		// One processor needs no timer of its own beside the legacy one.
		k = append(k, "nolapic_timer", "noreplace-smp")
	}
	return k
}

// blockdev is the back-end of a disk. The host's page cache is used: read-only
// layers are shared by many machines, and what the guest has flushed is on the
// disk, because QEMU turns a flush into fdatasync (cache.no-flush=off).
func blockdev(node string, d vmm.Disk) string {
	file := map[string]any{
		"driver":   "file",
		"filename": d.Path,
		// A writable disk belongs to one machine. Read-only ones share their lock.
		"locking": "on",
	}
	b, err := json.Marshal(map[string]any{
		"node-name":      node,
		"driver":         "raw",
		"read-only":      d.ReadOnly,
		"auto-read-only": false,
		"discard":        "unmap",
		"cache":          map[string]any{"direct": false, "no-flush": false},
		"file":           file,
	})
	if err != nil {
		panic(err) // strings and booleans always marshal
	}
	return string(b)
}

// escape protects a value from QEMU's option parser, to which a comma ends it.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// pciAllocator hands out PCI functions, eight to a slot, so that all 240 fit.
type pciAllocator struct {
	on bool
	n  int
}

// next places a device that can speak the protocol from before virtio 1.0 too.
func (s *pciAllocator) next() string {
	if !s.on {
		return ""
	}
	return ",disable-legacy=on" + s.address()
}

// address places a device that cannot.
func (s *pciAllocator) address() string {
	if !s.on {
		return ""
	}
	slot, fn := 1+s.n/pciFunctions, s.n%pciFunctions
	s.n++
	return fmt.Sprintf(",multifunction=on,addr=%02x.%x", slot, fn)
}
