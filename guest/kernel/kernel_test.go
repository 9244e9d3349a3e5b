package kernel

import (
	"slices"
	"strings"
	"testing"
)

func TestMissing(t *testing.T) {
	const config = "# a comment\nCONFIG_A=y\nCONFIG_S=\"text\"\n# CONFIG_B is not set\nCONFIG_M=m\n"
	tests := []struct {
		name, asked string
		want        []string
	}{
		{"all there", "CONFIG_A=y\nCONFIG_S=\"text\"\n", nil},
		{"comments ask for nothing", "# why\n\n## CONFIG_C\n", nil},
		{"dropped", "CONFIG_C=y\nCONFIG_A=y\n", []string{"CONFIG_C=y"}},
		{"switched off", "CONFIG_B=y\n", []string{"CONFIG_B=y"}},
		{"another value", "CONFIG_S=\"other\"\nCONFIG_M=y\n", []string{"CONFIG_S=\"other\"", "CONFIG_M=y"}},
		{"a name that begins as another", "CONFIG_AB=y\n", []string{"CONFIG_AB=y"}},
		{"not wanted and off", "# CONFIG_B is not set\n", nil},
		{"not wanted and unknown", "# CONFIG_C is not set\n", nil},
		{"not wanted and on", "# CONFIG_A is not set\n", []string{"# CONFIG_A is not set"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Missing(tt.asked, config); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestOptions makes sure that nobody takes away what the guest cannot do
// without: the build itself only checks that what is asked for is set.
func TestOptions(t *testing.T) {
	needed := []string{
		"VIRTIO_BLK", "VIRTIO_MMIO", "VIRTIO_PCI", "VIRTIO_VSOCKETS", "VIRTIO_NET", "VIRTIO_FS", "VIRTIO_BALLOON", "HW_RANDOM_VIRTIO",
		"EXT4_FS", "OVERLAY_FS", "EROFS_FS", "TMPFS", "DEVTMPFS", "PROC_FS", "SYSFS", "BLK_DEV_LOOP", "BLK_DEV_INITRD",
		"CGROUPS", "MEMCG", "CGROUP_PIDS", "CPUSETS", "CFS_BANDWIDTH", "BLK_CGROUP", "CGROUP_DEVICE", "CGROUP_BPF",
		"NAMESPACES", "PID_NS", "NET_NS", "USER_NS", "IPC_NS", "UTS_NS",
		"SECCOMP", "SECCOMP_FILTER", "IKCONFIG", "UNIX98_PTYS",
	}
	perArch := map[string][]string{
		"amd64": {"PVH", "SERIAL_8250_CONSOLE", "VIRTIO_MMIO_CMDLINE_DEVICES"},
		"arm64": {"SERIAL_AMBA_PL011_CONSOLE", "ARM_PSCI_FW", "VIRTIO_CONSOLE"},
	}
	for arch, more := range perArch {
		got, err := Options(arch)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range append(more, needed...) {
			if !strings.Contains(got, "\nCONFIG_"+o+"=y\n") {
				t.Errorf("%s: CONFIG_%s is not asked for", arch, o)
			}
		}
		if strings.Contains(got, "=m\n") {
			t.Errorf("%s: a module is asked for, but images with this kernel carry none", arch)
		}
	}
	if _, err := Options("mips"); err == nil {
		t.Error("there are options for mips")
	}
}
