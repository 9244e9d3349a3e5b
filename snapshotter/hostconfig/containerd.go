// Package hostconfig writes the configuration that other programs on a host
// need to work with applevm.
package hostconfig

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"text/template"

	"github.com/applevm/applevm/config"
)

const (
	// Snapshotter is the name of the snapshotter in containerd.
	Snapshotter = "applevm"
	// Differ is the name of the differ. A proxy plugin's name has one type,
	// so it cannot be the snapshotter's.
	Differ = "applevm-diff"
	// Runtime is the runtime's name, which containerd turns into the name of
	// the binary, containerd-shim-applevm-v1.
	Runtime = "io.containerd.applevm.v1"
)

// Containerd describes what containerd's configuration must hold.
type Containerd struct {
	// Address is the socket of applevm-snapshotter, an absolute path.
	Address string
	// Platform is that of the images, "linux/arm64". It is empty for the
	// default, the host's architecture.
	Platform string
	// Unpacks is how many layers are unpacked at once; 0 is the default, 2.
	Unpacks int
}

// ForConfig returns the description for a host with the given configuration.
func ForConfig(cfg config.Snapshotter) Containerd { return Containerd{Address: cfg.Address} }

// Write writes the configuration as TOML of version 3, which containerd 2.0 to
// 2.4 read. It stands for itself, as a file in /etc/containerd/conf.d, and can
// be put at the end of a config.toml that has none of its tables.
func (c Containerd) Write(w io.Writer) error {
	if c.Platform == "" {
		c.Platform = "linux/" + defaultArch
	}
	if c.Unpacks == 0 {
		c.Unpacks = 2
	}
	if !platform.MatchString(c.Platform) {
		return fmt.Errorf("platform %q is not of the form linux/arm64", c.Platform)
	}
	if c.Address == "" || c.Unpacks < 0 {
		return errors.New("containerd's configuration needs the snapshotter's socket and a number of unpacks above 0")
	}
	return containerdConfig.Execute(w, c)
}

var platform = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9/]+$`)

// Names are put in by the constants, so that they are written once.
var containerdConfig = template.Must(template.New("containerd").Funcs(template.FuncMap{
	"snapshotter": func() string { return Snapshotter },
	"differ":      func() string { return Differ },
	"runtime":     func() string { return Runtime },
}).Parse(`version = 3

# applevm-snapshotter serves both plugins on one socket.
[proxy_plugins.{{snapshotter}}]
  type = "snapshot"
  address = {{printf "%q" .Address}}
  platform = {{printf "%q" .Platform}}
  capabilities = ["rebase", "remap-ids"] # layers are unpacked in parallel; the machine maps the IDs of user namespaces

[proxy_plugins.{{differ}}]
  type = "diff"
  address = {{printf "%q" .Address}}
  platform = {{printf "%q" .Platform}}

# Ours is asked first: it leaves other snapshotters' layers to the next one.
[plugins."io.containerd.service.v1.diff-service"]
  default = ["{{differ}}", "walking"]

[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_unpacks = {{.Unpacks}}

  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = {{printf "%q" .Platform}}
    snapshotter = "{{snapshotter}}"
    differ = "{{differ}}"

  # What containerd has by default, where it exists, for other runtimes.
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = {{printf "%q" .Platform}}
    snapshotter = "overlayfs"
    differ = "walking"
    optional = true

# For Kubernetes: runtimeClassName with this handler.
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{{snapshotter}}]
  runtime_type = "{{runtime}}"
  snapshotter = "{{snapshotter}}"
`))
