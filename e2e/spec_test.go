package e2e

import (
	"os"
	"strings"
	"testing"
)

// capabilities are the test's own, which its clients give to privileged containers.
func capabilities(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "CapEff:\t")
	caps, _, _ := strings.Cut(rest, "\n")
	return caps
}

// What clients make of their flags is applied in the machine; the fields one by
// one are proved by guest/agent/agenttest.
func TestNerdctlFlagsReachTheMachine(t *testing.T) {
	s := rootStack(t)
	for _, tc := range []struct {
		name  string
		flags []string
		run   string
		want  string
	}{
		{"limits and identity", []string{
			"--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--ulimit", "nofile=333:444", "--sysctl", "vm.max_map_count=262145",
			"--security-opt", "no-new-privileges", "--pids-limit", "99", "--cpu-shares", "512", "--oom-score-adj", "321",
			"--shm-size", "12m", "--tmpfs", "/scratch:size=1m", "--group-add", "5", "--workdir", "/made", "--hostname", "box",
			"--cpuset-cpus", "0", "--device", "/dev/fuse", "--read-only",
		}, "grep ^CapBnd /proc/self/status | cut -f2; ulimit -n; cat /proc/sys/vm/max_map_count; grep NoNewPrivs /proc/self/status | cut -f2;" +
			"cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup) && cat pids.max cpu.weight /proc/self/oom_score_adj; cd $OLDPWD; df --output=size -k /dev/shm /scratch | tail -n2;" +
			"id -G; pwd; hostname; stat -c %t:%T /dev/fuse; touch /x 2>/dev/null || echo read-only; grep ^Seccomp: /proc/self/status | cut -f2",
			"0000000000000400 333 262145 1 99 59 321 12288 1024 0 5 /made box a:e5 read-only 2"},
		{"privileged, sharing the machine's", []string{"--privileged", "--pid", "host", "--ipc", "host", "--uts", "host", "--cgroupns", "host"},
			"grep ^CapEff /proc/self/status | cut -f2; cat /proc/1/comm; ls -d /dev/vda /dev/sda 2>/dev/null; mkdir -p /m && mount -t tmpfs x /m && echo mounted; grep -c ' /dev/shm .* - tmpfs' /proc/self/mountinfo",
			capabilities(t) + " init /dev/vda mounted 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := must(t, s.NerdctlRun(t.Context(), append(append([]string{"--rm"}, tc.flags...), img, "sh", "-c", tc.run)...))
			if got := strings.Join(strings.Fields(out), " "); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
	clean(t, s)
}

func TestUserNamespaceKeepsTheImagesOwners(t *testing.T) {
	s := rootStack(t) // containerd gives the bundle to the mapped root
	out := must(t, s.CtrRun(t.Context(), "--rm", "--remap-labels", "--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", img, name(t), "sh", "-c",
		"cat /proc/self/uid_map; stat -c %u:%g /etc/passwd; id -u; touch /new && stat -c %u:%g /new"))
	if got := strings.Join(strings.Fields(out), " "); got != "0 100000 65536 0:0 0 0:0" {
		t.Errorf("got %s", got)
	}
}
