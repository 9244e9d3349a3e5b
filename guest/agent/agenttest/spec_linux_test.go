package agenttest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/agent/agenttest"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// check is one observation in a container: what a shell command prints, without
// space around it.
type check struct{ name, command, want string }

// checks starts one container, has it make all observations, and compares.
func (m *machine) checks(t *testing.T, id string, fs *guestv1.Rootfs, spec func(*specs.Spec), list []check) {
	t.Helper()
	m.T = t
	var script strings.Builder
	for i, c := range list {
		fmt.Fprintf(&script, "echo '##%d'\n(%s) 2>&1\n", i, c.command)
	}
	r, err := m.Create(agenttest.Config{ID: id, Args: []string{"sh", "-c", script.String()}, Spec: spec}, fs)
	if err != nil {
		t.Errorf("%s: create: %v", id, err)
		return
	}
	r.MustStart()
	r.Finish()
	if e := r.Stderr.String(); e != "" {
		t.Errorf("%s: stderr %q", id, e)
	}
	r.MustDelete()
	out := r.Stdout.String()
	for i, c := range list {
		_, rest, ok := strings.Cut(out, fmt.Sprintf("##%d\n", i))
		got, _, _ := strings.Cut(rest, fmt.Sprintf("##%d\n", i+1))
		if got = strings.TrimSpace(got); !ok || got != c.want {
			t.Errorf("%s: %s: %s\ngot  %q\nwant %q", id, c.name, c.command, got, c.want)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// cgroupfs and sysfs are mounts that clients ask for by default.
func cgroupfs(s *specs.Spec, options ...string) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"nosuid", "noexec", "nodev"}, options...)},
		specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"nosuid", "noexec", "nodev", "relatime"}, options...)})
}

func without(s *specs.Spec, kind specs.LinuxNamespaceType) {
	var left []specs.LinuxNamespace
	for _, n := range s.Linux.Namespaces {
		if n.Type != kind {
			left = append(left, n)
		}
	}
	s.Linux.Namespaces = left
}

// What the OCI runtime spec asks of a Linux container holds in a machine; what a
// row here proves is named in docs/oci.md.
func TestMachineAppliesTheSpec(t *testing.T) {
	h := agenttest.New(t, t.TempDir())
	fs := h.System()
	m := boot(t, h, hostArch())

	m.checks(t, "all", fs, func(s *specs.Spec) {
		cgroupfs(s, "ro")
		p, l := s.Process, s.Linux
		p.Cwd = "/made/for/it"
		p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 2000}, Umask: ptr(uint32(0o027))}
		p.OOMScoreAdj = ptr(321)
		caps := []string{"CAP_NET_BIND_SERVICE", "CAP_SYS_NICE"}
		p.Capabilities = &specs.LinuxCapabilities{
			Bounding: append([]string{"CAP_CHOWN"}, caps...), Permitted: caps, Effective: caps, Inheritable: caps[:1], Ambient: caps[:1],
		}
		p.Rlimits = []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: 333, Hard: 444}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 1 << 20},
			{Type: "RLIMIT_NPROC", Soft: 77, Hard: 78}, {Type: "RLIMIT_STACK", Soft: 4 << 20, Hard: 16 << 20},
		}
		p.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 7}
		p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		s.Domainname = "example.test"
		l.Sysctl = map[string]string{
			"kernel.msgmax": "9000", "fs.mqueue.msg_max": "11", "net.ipv4.ip_forward": "1",
			"net/ipv4/conf/lo/rp_filter": "2", "kernel.domainname": "sysctl.test",
			"vm.max_map_count": "262145", // the machine's own
		}
		l.MaskedPaths = []string{"/proc/interrupts", "/sys/firmware", "/proc/nothing"}
		l.ReadonlyPaths = []string{"/proc/sys", "/proc/irq"}
		l.RootfsPropagation = "shared"
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		l.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 864000}, "monotonic": {Secs: 3600, Nanosecs: 5}}
		l.Resources = &specs.LinuxResources{
			Memory:         &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Reservation: ptr(int64(32 << 20)), Swap: ptr(int64(96 << 20))},
			CPU:            &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Burst: ptr(uint64(1000)), Shares: ptr(uint64(512)), Cpus: "0", Mems: "0"},
			Pids:           &specs.LinuxPids{Limit: ptr(int64(99))},
			BlockIO:        &specs.LinuxBlockIO{Weight: ptr(uint16(500))},
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}},
			Unified:        map[string]string{"memory.high": "50331648", "cgroup.max.depth": "3"},
		}
		l.Devices = []specs.LinuxDevice{
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: ptr(os.FileMode(0o600)), UID: ptr(uint32(1000)), GID: ptr(uint32(5))},
			{Path: "/dev/other/zero", Type: "c", Major: 1, Minor: 5},
			{Path: "/dev/pipe", Type: "p"},
		}
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=12345k"}},
			specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs", Options: []string{"rw", "tmpcopyup", "nosuid", "size=1m"}},
			specs.Mount{Destination: "/new/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "mode=0751"}})
	}, []check{
		{"working directory is made", "pwd", "/made/for/it"},
		{"user", "id", "uid=1000(app) gid=1001(app) groups=5,2000(extra)"},
		{"umask", "umask", "0027"},
		{"OOM score", "cat /proc/self/oom_score_adj", "321"},
		{"capabilities", "grep ^Cap /proc/self/status | cut -f2", "0000000000000400\n0000000000000400\n0000000000000400\n0000000000800401\n0000000000000400"},
		{"no new privileges", "grep NoNewPrivs /proc/self/status | cut -f2", "1"},
		{"limits", "ulimit -n; ulimit -Hn; ulimit -Hc; ulimit -u; ulimit -Hs", "333\n444\n2048\n77\n16384"},
		{"scheduler", "cut -d' ' -f41,19 /proc/1/stat", "7 3"},
		{"I/O priority", "busybox ionice -p 1", "best-effort: prio 6"},
		{"host name", "hostname; cat /proc/sys/kernel/domainname", "box\nsysctl.test"},
		{"sysctls", "cd /proc/sys; cat kernel/msgmax fs/mqueue/msg_max net/ipv4/ip_forward net/ipv4/conf/lo/rp_filter", "9000\n11\n1\n2"},
		{"the machine's sysctl", "cat /proc/sys/vm/max_map_count", "262145"},
		{"masked file", "wc -c </proc/interrupts", "0"},
		{"read-only paths", "grep -c -E ' /proc/(sys|irq) ro,' /proc/self/mountinfo", "2"},
		{"root's propagation", "grep -c -E '^[0-9]+ [0-9]+ [0-9:]+ / / .* shared:' /proc/self/mountinfo", "1"},
		{"time offsets", "cat /proc/self/timens_offsets", "monotonic        3600         5\nboottime       864000         0"},
		{"cgroup of its own", "cat /proc/self/cgroup", "0::/"},
		{"memory", "cd /sys/fs/cgroup; cat memory.max memory.low memory.swap.max memory.high", "67108864\n33554432\n33554432\n50331648"},
		{"CPU", "cd /sys/fs/cgroup; cat cpu.max cpu.max.burst cpu.weight cpuset.cpus cpuset.mems cpuset.cpus.effective", "50000 100000\n1000\n59\n0\n0\n0"},
		{"pids", "cat /sys/fs/cgroup/pids.max", "99"},
		{"I/O weight", "cat /sys/fs/cgroup/io.weight", "default 4950"},
		{"huge pages", "cat /sys/fs/cgroup/hugetlb.2MB.max", "4194304"},
		{"unified", "cat /sys/fs/cgroup/cgroup.max.depth", "3"},
		{"cgroup is read-only", "echo 5 >/sys/fs/cgroup/pids.max", "sh: can't create /sys/fs/cgroup/pids.max: Read-only file system"},
		{"device", "busybox stat -c '%t:%T %a %u:%g' /dev/fuse; busybox stat -c '%t:%T %a' /dev/other/zero; busybox stat -c %F /dev/pipe", "a:e5 600 1000:5\n1:5 666\nfifo"},
		{"device is usable", "head -c 3 /dev/other/zero | wc -c", "3"},
		{"default devices", "cd /dev; ls -d null zero full random urandom tty ptmx fd stdin stdout stderr pts | wc -l", "12"},
		{"shared memory", "busybox df -k /dev/shm | busybox tail -n1 | busybox awk '{print $2}'", "12348"},
		{"message queues", "grep -c ' /dev/mqueue .* - mqueue ' /proc/self/mountinfo", "1"},
		{"tmpfs with the image's files", "cat /etc/notexec; grep -c ' /etc .*- tmpfs ' /proc/self/mountinfo", "x1"},
		{"tmpfs", "busybox stat -c %a /new/tmp; grep ' /new/tmp ' /proc/self/mountinfo | cut -d' ' -f6", "751\nro,relatime"},
		{"environment", "echo $A $HOME", "b /"},
	})

	m.checks(t, "seccomp", fs, func(s *specs.Spec) {
		errno := func(n uint) *uint { return &n }
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: errno(28)},
			{Names: []string{"kill"}, Action: specs.ActErrno, ErrnoRet: errno(1), Args: []specs.LinuxSeccompArg{{Index: 1, Value: 10, Op: specs.OpEqualTo}}},
			{Names: []string{"sync"}, Action: specs.ActKillProcess},
		}}
		s.Process.NoNewPrivileges = false
	}, []check{
		{"mode", "grep ^Seccomp: /proc/self/status | cut -f2", "2"},
		{"errno", "mkdir /x", "mkdir: can't create directory '/x': No space left on device"},
		{"argument", "busybox kill -USR1 $$; busybox kill -0 $$ && echo ok", "kill: can't kill pid 1: Operation not permitted\nok"},
		{"kill", "busybox sync; echo $?", "Bad system call\n159"},
	})

	m.checks(t, "default", fs, func(s *specs.Spec) {
		caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_KILL"}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
	}, []check{
		{"a user namespace needs a capability", "busybox unshare -U true", "unshare: unshare(0x10000000): Operation not permitted"},
		{"ordinary work", "mkdir /d && ls -d /d && sleep 0.01 && echo ok", "/d\nok"},
	})
}

// What a client takes away from a container, or from its confinement.
func TestMachineSharesItsOwn(t *testing.T) {
	h := agenttest.New(t, t.TempDir())
	fs := h.System()
	m := boot(t, h, hostArch())

	m.checks(t, "host", fs, func(s *specs.Spec) {
		for _, k := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace, specs.MountNamespace} {
			without(s, k)
		}
		s.Hostname, s.Domainname = "the-host", "host.test"
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "9001", "user.max_mnt_namespaces": "1234"}
		s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup"})
	}, []check{
		{"the machine's processes", "cat /proc/1/comm", "init"},
		{"the machine's names", "hostname; cat /proc/sys/kernel/domainname", "the-host\nhost.test"},
		{"the machine's parameters", "cd /proc/sys; cat net/ipv4/ip_forward kernel/msgmax user/max_mnt_namespaces", "1\n9001\n1234"},
		{"the machine's cgroups", "cat /proc/self/cgroup; ls -d /sys/fs/cgroup/agent-test-host", "0::/agent-test-host\n/sys/fs/cgroup/agent-test-host"},
		{"mounts of its own", "grep -c ' / / ' /proc/self/mountinfo", "1"},
	})

	m.checks(t, "privileged", fs, func(s *specs.Spec) {
		cgroupfs(s, "rw")
		s.Process.NoNewPrivileges = false
		s.Process.Capabilities = &specs.LinuxCapabilities{} // of an ordinary user's client
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}
	}, []check{
		{"all capabilities", "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | busybox sort -u", "000001ffffffffff"},
		{"the machine's devices", "cd /dev; ls -d fuse vda vdb kmsg net/tun mem loop-control 2>&1", "fuse\nkmsg\nloop-control\nmem\nnet/tun\nvda\nvdb"},
		{"they can be opened", "head -c 1 /dev/vda | wc -c; head -c 1 /dev/kmsg | wc -c", "1\n1"},
		{"its own terminals", "ls -l /dev/ptmx | grep -c 'pts/ptmx'", "1"},
		{"writable sysfs", "mkdir /sys/fs/cgroup/sub && echo ok; rm -rf /none; busybox rmdir /sys/fs/cgroup/sub", "ok"},
		{"mounting", "mkdir -p /mnt && mount -t tmpfs none /mnt && echo ok", "ok"},
		{"loop device", "busybox losetup -f", "/dev/loop0"},
	})
}

func TestMachineUserNamespace(t *testing.T) {
	h := agenttest.New(t, t.TempDir())
	upper := h.Layer("upper", func(d string) {
		for name, owner := range map[string][2]int{"root-owned": {0, 0}, "app-owned": {1000, 1001}, "unmapped": {70000, 70000}} {
			p := filepath.Join(d, name)
			if err := os.WriteFile(p, []byte(name), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(p, owner[0], owner[1]); err != nil {
				t.Fatal(err)
			}
		}
	})
	fs := h.System()
	fs.Lower = append(fs.Lower, upper)
	m := boot(t, h, hostArch())
	spec := func(s *specs.Spec) {
		cgroupfs(s, "ro")
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
		s.Linux.Sysctl = map[string]string{"user.max_mnt_namespaces": "77"}
		s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_FOWNER", "CAP_DAC_OVERRIDE")
		s.Process.Capabilities.Effective = s.Process.Capabilities.Bounding
		s.Process.Capabilities.Permitted = s.Process.Capabilities.Bounding
	}
	m.checks(t, "userns", fs, spec, []check{
		{"mapping", "busybox awk '{print $1,$2,$3}' /proc/self/uid_map /proc/self/gid_map", "0 100000 65536\n0 200000 65536"},
		{"owners", "busybox stat -c '%n %u:%g' /root-owned /app-owned /unmapped /bin/busybox", "/root-owned 0:0\n/app-owned 1000:1001\n/unmapped 65534:65534\n/bin/busybox 0:0"},
		{"copy up", "echo x >>/root-owned; cat /root-owned; busybox chown 7:8 /app-owned; busybox stat -c %u:%g /app-owned", "root-ownedx\n7:8"},
		{"new files", "mkdir /new; echo y >/new/y; busybox stat -c '%n %u:%g' /new /new/y", "/new 0:0\n/new/y 0:0"},
		{"removed", "rm /unmapped; rm /etc/notexec; ls /etc/notexec", "rm: can't remove '/unmapped': Value too large for defined data type\nls: /etc/notexec: No such file or directory"},
		{"devices", "echo x >/dev/null && head -c 1 /dev/zero | wc -c", "1"},
		{"its sysctl", "cat /proc/sys/user/max_mnt_namespaces", "77"},
	})
	x := m.Start(agenttest.Config{ID: "userns2", Args: []string{"sh", "-c", "cat /etc/hosts; busybox stat -c '%u:%g' /etc/hosts; id -u; echo err >/dev/stderr"}, Spec: func(s *specs.Spec) {
		spec(s)
		s.Process.User = specs.User{UID: 1000, GID: 1001}
	}, Options: func(o *guestv1.ContainerOptions) {
		o.Files = []*guestv1.File{{Path: "/etc/hosts", Content: []byte("127.0.0.1 x\n"), Mode: 0o644}}
	}}, fs)
	if code := x.Finish(); code != 0 || x.Stdout.String() != "127.0.0.1 x\n0:0\n1000\n" || x.Stderr.String() != "err\n" {
		t.Errorf("exit code %d, %q, %q", code, x.Stdout.String(), x.Stderr.String())
	}
	x.MustDelete()
	// Without the user namespace the changes belong to whom the image knows.
	m.checks(t, "plain", fs, nil, []check{
		{"owners on the disk", "busybox stat -c '%n %u:%g' /root-owned /new /new/y /app-owned", "/root-owned 0:0\n/new 0:0\n/new/y 0:0\n/app-owned 7:8"},
	})
}
