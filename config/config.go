// Package config is the one typed configuration of applevm, read by the shim
// and by applevm-snapshotter: a TOML file whose every field has a default that
// works.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Env names the environment variable that holds the configuration's path.
const Env = "APPLEVM_CONFIG"

// Config is the whole configuration. The comments of its fields' tags are those
// of the file that Write writes.
type Config struct {
	Guest       Guest       `toml:"guest" comment:"What machines boot."`
	Machine     Machine     `toml:"machine" comment:"The defaults for a container's machine."`
	Network     Network     `toml:"network" comment:"The default network of containers."`
	QEMU        QEMU        `toml:"qemu" comment:"The driver \"qemu\"."`
	Snapshotter Snapshotter `toml:"snapshotter" comment:"The daemon applevm-snapshotter."`
}

// Guest says where the guest image is.
type Guest struct {
	// Dir holds the guest image as guest/image builds it: image.json, the
	// kernel and the initramfs.
	Dir string `toml:"dir" comment:"The directory of the guest image: image.json, the kernel and the initramfs."`
}

// Machine holds the defaults for a container's machine.
type Machine struct {
	// Driver is "qemu" or "vz".
	Driver string `toml:"driver" comment:"What runs machines: qemu (Linux) or vz (macOS)."`
	// CPUs is the number of virtual CPUs; 0 lets the driver choose.
	CPUs int `toml:"cpus" comment:"Virtual CPUs; 0 is automatic: 1 under emulation, else 2 or what the host has."`
	// MemoryMiB is the guest's memory in MiB.
	MemoryMiB int64 `toml:"memory_mib" comment:"The guest's memory in MiB, at least 128."`
	// BootTimeout bounds the time from the VMM's start to the agent's call.
	BootTimeout Duration `toml:"boot_timeout" comment:"How long a guest may take from the VMM's start to the agent's call."`
	// FileEvents says that processes which watch files of the host hear what the host does to them.
	FileEvents bool `toml:"file_events" comment:"Processes that watch files of the host (inotify) hear what the host does to them."`
	// Translate has programs of the other architecture (arm64, amd64) run.
	Translate bool `toml:"translate" comment:"Programs of the other architecture (arm64, amd64) run where the host has Rosetta, or on Linux qemu-user-static."`
}

// Network modes.
const (
	// NetworkUser is a network in the shim, without privilege.
	NetworkUser = "user"
	// NetworkNone is the container's loopback interface only.
	NetworkNone = "none"
	// NetworkNAT is macOS's own network for machines (vmnet's NAT).
	NetworkNAT = "nat"
)

// Network holds the defaults for a container's network.
type Network struct {
	// Default is the network where no client asks for one.
	Default string `toml:"default" comment:"The network where no client asks for one: user (in the shim, without privilege), none, or on macOS nat."`
	// Subnet is the IPv4 network of user networks; every machine has one of its own.
	Subnet netip.Prefix `toml:"subnet" comment:"The IPv4 network that each container with a user network has for itself; one that the host does not use."`
	// MTU is the longest packet of user networks, in bytes.
	MTU int `toml:"mtu" comment:"The longest packet in bytes, 1280 to 65520."`
	// HostLoopback lets containers reach what listens on the host's loopback.
	HostLoopback bool `toml:"host_loopback" comment:"Containers reach what listens on the host's loopback addresses at host.applevm.internal."`
	// MaxConnections and MaxUDPFlows bound what one container has of either.
	MaxConnections int `toml:"max_connections" comment:"TCP connections of one container at a time; each may take 512 KiB of memory."`
	MaxUDPFlows    int `toml:"max_udp_flows" comment:"UDP flows of one container at a time; one more ends the one that was idle for longest."`
}

// QEMU configures the qemu driver.
type QEMU struct {
	// Binary is the emulator; empty finds qemu-system-ARCH in PATH.
	Binary string `toml:"binary" comment:"The emulator; empty finds qemu-system-ARCH in PATH."`
	// Accel is "auto" (probe /dev/kvm once, else TCG), "kvm", "hvf" or "tcg".
	Accel string `toml:"accel" comment:"auto tries KVM once and falls back to tcg (emulation); kvm and tcg insist."`
	// CacheDir remembers what the probe found; empty is the user's cache directory.
	CacheDir string `toml:"cache_dir" comment:"Remembers what the trial found; empty is the user's cache directory."`
}

// Snapshotter configures applevm-snapshotter.
type Snapshotter struct {
	// Root holds images and metadata.
	Root string `toml:"root" comment:"Images and metadata."`
	// Address is the unix socket that containerd's proxy plugins dial.
	Address string `toml:"address" comment:"The unix socket that containerd's proxy plugins dial."`
	// ContainerdAddress is containerd's own socket, for its content store.
	ContainerdAddress string `toml:"containerd_address" comment:"containerd's own socket, for its content store."`
	// WritableSizeGiB is the size that a container's writable image appears to
	// have, in GiB. It is sparse: only what is written takes space.
	WritableSizeGiB int64 `toml:"writable_size_gib" comment:"Apparent size in GiB of a container's writable image; it is sparse."`
	// MaxLayers is how many disks an image's layers take in a machine at the most.
	// Of a longer image the lowest layers are merged into one disk.
	MaxLayers int `toml:"max_layers" comment:"The most disks that an image's layers take; the lowest of a longer image are merged into one."`
}

// Duration is a time.Duration that TOML writes as "30s".
type Duration time.Duration

// UnmarshalText parses time.ParseDuration's form.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default returns the configuration that holds where no file says otherwise.
func Default() Config {
	return Config{
		Guest: Guest{Dir: filepath.Join(prefix(), "share", "applevm", "guest", runtime.GOARCH)},
		Machine: Machine{
			Driver:      defaultDriver,
			MemoryMiB:   512,
			BootTimeout: Duration(60 * time.Second),
			FileEvents:  true,
			Translate:   true,
		},
		Network: Network{
			Default:        NetworkUser,
			Subnet:         netip.MustParsePrefix("192.168.127.0/24"),
			MTU:            65520,
			MaxConnections: 1024,
			MaxUDPFlows:    512,
		},
		QEMU: QEMU{Accel: "auto"},
		Snapshotter: Snapshotter{
			Root:              defaultRoot,
			Address:           defaultAddress,
			ContainerdAddress: "/run/containerd/containerd.sock",
			WritableSizeGiB:   64,
			MaxLayers:         16,
		},
	}
}

// prefix is the installation prefix: the parent of the directory that holds
// the running binary, so that a tree can be moved as a whole.
func prefix() string {
	exe, err := os.Executable()
	if err != nil {
		return "/usr/local"
	}
	if p, err := filepath.EvalSymlinks(exe); err == nil {
		exe = p
	}
	return filepath.Dir(filepath.Dir(exe))
}

// Load reads the file named by path, or if that is empty by $APPLEVM_CONFIG,
// else /etc/applevm/config.toml if it exists. Fields that the file does not
// set keep their defaults; a field that nobody knows is an error.
func Load(path string) (Config, error) {
	c := Default()
	optional := false
	if path == "" {
		path = os.Getenv(Env)
	}
	if path == "" {
		path, optional = "/etc/applevm/config.toml", true
	}
	f, err := os.Open(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return c, c.Validate()
	}
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	if err := toml.NewDecoder(f).DisallowUnknownFields().Decode(&c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return c, fmt.Errorf("configuration %s: unknown setting:\n%s", path, strict.String())
		}
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Write writes c as the TOML file that Load reads back to the same, each
// setting with a comment.
func (c Config) Write(w io.Writer) error {
	if err := toml.NewEncoder(w).Encode(c); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// Validate checks what can be checked without looking at the machine.
func (c Config) Validate() error {
	switch {
	case c.Machine.Driver != "qemu" && c.Machine.Driver != "vz":
		return fmt.Errorf("machine.driver is %q: use \"qemu\" or \"vz\"", c.Machine.Driver)
	case c.Machine.CPUs < 0 || c.Machine.CPUs > 64:
		return fmt.Errorf("machine.cpus is %d: use 0 (automatic) to 64", c.Machine.CPUs)
	case c.Machine.MemoryMiB < 128:
		return fmt.Errorf("machine.memory_mib is %d: the guest needs at least 128", c.Machine.MemoryMiB)
	case c.Machine.MemoryMiB > 1<<30: // 1 PiB; in bytes it must not overflow
		return fmt.Errorf("machine.memory_mib is %d: use at most %d", c.Machine.MemoryMiB, 1<<30)
	case c.Machine.BootTimeout <= 0:
		return errors.New("machine.boot_timeout must be positive")
	case c.Snapshotter.WritableSizeGiB < 1 || c.Snapshotter.WritableSizeGiB > 16<<10:
		return fmt.Errorf("snapshotter.writable_size_gib is %d: use 1 to %d", c.Snapshotter.WritableSizeGiB, 16<<10)
	}
	if err := c.Network.validate(); err != nil {
		return err
	}
	if n := c.Snapshotter.MaxLayers; n < 1 || n > 127 {
		return fmt.Errorf("snapshotter.max_layers is %d: use 1 to 127", n)
	}
	switch c.QEMU.Accel {
	case "auto", "kvm", "hvf", "tcg":
	default:
		return fmt.Errorf("qemu.accel is %q: use \"auto\", \"kvm\", \"hvf\" or \"tcg\"", c.QEMU.Accel)
	}
	return nil
}

func (n Network) validate() error {
	switch {
	case n.Default != NetworkUser && n.Default != NetworkNone && n.Default != NetworkNAT:
		return fmt.Errorf("network.default is %q: use %q, %q or, on macOS, %q", n.Default, NetworkUser, NetworkNone, NetworkNAT)
	case !n.Subnet.IsValid() || !n.Subnet.Addr().Is4() || n.Subnet != n.Subnet.Masked() || n.Subnet.Bits() < 8 || n.Subnet.Bits() > 29:
		return fmt.Errorf("network.subnet is %q: use an IPv4 network with a prefix of 8 to 29 bits, for instance 192.168.127.0/24", n.Subnet)
	case n.MTU < 1280 || n.MTU > 65520:
		return fmt.Errorf("network.mtu is %d: use 1280 to 65520", n.MTU)
	case n.MaxConnections < 1 || n.MaxConnections > 1<<16:
		return fmt.Errorf("network.max_connections is %d: use 1 to %d", n.MaxConnections, 1<<16)
	case n.MaxUDPFlows < 1 || n.MaxUDPFlows > 1<<16:
		return fmt.Errorf("network.max_udp_flows is %d: use 1 to %d", n.MaxUDPFlows, 1<<16)
	}
	return nil
}
