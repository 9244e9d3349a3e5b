// Package config is the one typed configuration of applevm, read by the shim
// and by applevm-snapshotter: a TOML file whose every field has a default that
// works.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
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
