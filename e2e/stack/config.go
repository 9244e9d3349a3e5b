package stack

import (
	"fmt"
	"os"
)

// containerdConfig is containerd's configuration: what docs/linux.md tells users
// to write, on private paths, less the plugins that no test uses.
func (s *Stack) containerdConfig(opts Options) string {
	uid := os.Getuid()
	if s.Unprivileged {
		uid = Nobody
	}
	differs, erofs := `["applevm-diff", "walking"]`, ""
	if opts.Erofs {
		differs = `["applevm-diff", "erofs", "walking"]`
		erofs = `
[plugins."io.containerd.snapshotter.v1.erofs"]
  default_size = "64MB"
`
	}
	return fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
temp = %[3]q
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.podsandbox.controller.v1.podsandbox",
]

[grpc]
  address = %[4]q
  uid = %[8]d
  gid = %[8]d

[ttrpc]
  address = %[5]q
  uid = %[8]d
  gid = %[8]d

[debug]
  level = "warn"

[proxy_plugins]
  [proxy_plugins.applevm]
    type = "snapshot"
    address = %[6]q
    capabilities = ["rebase", "remap-ids"]
  [proxy_plugins.applevm-diff]
    type = "diff"
    address = %[6]q

[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %[7]q

[plugins."io.containerd.service.v1.diff-service"]
  default = %[10]s

[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_unpacks = %[9]d
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "applevm"
    differ = "applevm-diff"
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "overlayfs"
    differ = "walking"
%[11]s`, s.path("root"), s.path("state"), s.path("tmp"), s.path("c.sock"), s.path("t.sock"), s.path("sn.sock"), s.path("s"), uid,
		max(1, opts.Unpacks), differs, erofs)
}

func (s *Stack) applevmConfig(more string) string {
	return fmt.Sprintf(`[guest]
dir = %q

[qemu]
cache_dir = %q

[snapshotter]
root = %q
address = %q
containerd_address = %q

%s`, s.path("guest"), s.path("cache"), s.path("snapshots"), s.path("sn.sock"), s.path("c.sock"), more)
}

func (s *Stack) nerdctlConfig() string {
	return fmt.Sprintf(`snapshotter = "applevm"
cgroup_manager = "cgroupfs"
data_root = %q
cni_netconfpath = %q
cdi_spec_dirs = [%q]
cni_path = %q
`, s.path("nerdctl"), s.path("cni"), s.path("cdi"), s.cni)
}
