package agenttest_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/guest/agent/agenttest"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

const resourcesType = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

// withMemory gives a container a limit, and a view of its own cgroup.
func withMemory(limit int64) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{
			Memory:  &specs.LinuxMemory{Limit: &limit},
			Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			BlockIO: &specs.LinuxBlockIO{ThrottleWriteBpsDevice: []specs.LinuxThrottleDevice{throttle(8, 77, 50<<20), throttle(8, 78, 40<<20)}},
		}
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}})
	}
}

func throttle(major, minor int64, rate uint64) (d specs.LinuxThrottleDevice) {
	d.Major, d.Minor, d.Rate = major, minor, rate
	return d
}

// ask runs a program in the container and returns what it prints.
func ask(t *testing.T, r *agenttest.Run, id string, args ...string) string {
	t.Helper()
	x := r.MustExec(id, args...)
	if code := x.Finish(); code != 0 {
		t.Errorf("%q: exit code %d, %s", args, code, x.Stderr)
	}
	x.MustDelete()
	return x.Stdout.String()
}

// TestResources looks, in one machine, at what containers use, changes what they
// may use, and lets them use too much.
func TestResources(t *testing.T) {
	h := agenttest.New(t, t.TempDir())
	fs := h.System()
	m := boot(t, h, hostArch())
	ctx := agenttest.Context(t)
	metrics := func(t *testing.T, id string) *stats.Metrics {
		t.Helper()
		resp, err := m.Task.Stats(ctx, &taskapi.StatsRequest{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		var s stats.Metrics
		if err := resp.Stats.UnmarshalTo(&s); err != nil {
			t.Fatal(err)
		}
		return &s
	}

	t.Run("stats and update", func(t *testing.T) {
		r := m.Start(agenttest.Config{ID: "u", Args: []string{"sleep", "1000"}, Spec: withMemory(64 << 20)}, fs)
		defer r.MustDelete()
		defer r.Wait()
		defer func() { _ = r.Kill(9, true) }()

		ask(t, r, "started", "true") // libcontainer's own threads have gone
		before := metrics(t, r.ID)
		ask(t, r, "work", "sh", "-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/tmp/x bs=1M count=8")
		after := metrics(t, r.ID)
		if before.Pids.Current != 1 || before.Memory.UsageLimit != 64<<20 || before.Memory.Usage == 0 || before.Memory.MaxUsage < before.Memory.Usage {
			t.Errorf("before: %v", before)
		}
		if after.CPU.UsageUsec <= before.CPU.UsageUsec || after.Memory.File < before.Memory.File+8<<20 {
			t.Errorf("after it has worked: %v\nbefore: %v", after, before)
		}

		update := func(resources any) error {
			b, err := json.Marshal(resources)
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Task.Update(ctx, &taskapi.UpdateTaskRequest{ID: r.ID, Resources: &anypb.Any{TypeUrl: resourcesType, Value: b}})
			return err
		}
		file := func(name string) string {
			t.Helper()
			return strings.TrimSpace(ask(t, r, "file", "cat", "/sys/fs/cgroup/"+name))
		}
		// Numbers of the host's disks stand for the container's own.
		disks := strings.Split(file("io.max"), "\n")
		if len(disks) != 2 || !strings.Contains(disks[0], "wbps=41943040") || !strings.Contains(disks[1], "wbps=41943040") {
			t.Errorf("io.max: %q", disks)
		}
		for _, tc := range []struct {
			resources specs.LinuxResources
			file      string
			want      string
		}{
			{specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(50000)), Period: new(uint64(100000)), Shares: new(uint64(2))}}, "cpu.max", "50000 100000"},
			{specs.LinuxResources{CPU: &specs.LinuxCPU{Period: new(uint64(200000))}}, "cpu.max", "50000 200000"},
			{specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(-1))}}, "cpu.max", "max 200000"},
			{specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}, "cpuset.cpus", "0"},
			{specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: new(uint64(0))}}, "cpu.weight", "1"}, // of the first update
			{specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(96 << 20)), Swap: new(int64(128 << 20)), Reservation: new(int64(32 << 20))}}, "memory.max", "100663296"},
			{specs.LinuxResources{}, "memory.low", "33554432"},
			{specs.LinuxResources{}, "memory.swap.max", "33554432"},
			{specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(-1))}}, "memory.max", "max"},
			{specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(77))}}, "pids.max", "77"},
			{specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: new(uint16(500))}}, "pids.max", "77"},
			{specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadIOPSDevice: []specs.LinuxThrottleDevice{throttle(3, 1, 500)}}}, "io.max",
				strings.ReplaceAll(strings.Join(disks, "\n"), "riops=max", "riops=500")},
			{specs.LinuxResources{Unified: map[string]string{"memory.high": "50331648"}}, "memory.high", "50331648"},
			{specs.LinuxResources{}, "memory.max", "max"},
		} {
			if err := update(tc.resources); err != nil {
				t.Errorf("update to %+v: %v", tc.resources, err)
			}
			if got := file(tc.file); got != tc.want {
				t.Errorf("after %+v %s is %q, want %q", tc.resources, tc.file, got, tc.want)
			}
		}
		if err := update(specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}); err != nil {
			t.Error(err)
		}
		if out := ask(t, r, "dev", "sh", "-c", "mknod /tmp/sda b 254 0; head -c 1 /tmp/sda 2>&1 || true"); !strings.Contains(out, "Operation not permitted") {
			t.Errorf("an update gave access to a disk: %q", out)
		}
		if err := update(specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "7"}}); err == nil || !strings.Contains(err.Error(), "cpuset.cpus") {
			t.Errorf("update to a CPU that the machine does not have: %v", err)
		}
		if got := file("cpuset.cpus"); got != "0" {
			t.Errorf("after an update that failed cpuset.cpus is %q", got)
		}
		if err := update("nonsense"); err == nil {
			t.Error("resources that are none were taken")
		}
	})

	events := func(after uint64, noWait bool) *guestv1.WaitEventsResponse {
		t.Helper()
		e, err := m.Guest.WaitEvents(ctx, &guestv1.WaitEventsRequest{After: after, NoWait: noWait})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	of := func(e *guestv1.WaitEventsResponse, id string) *guestv1.OutOfMemory {
		i := slices.IndexFunc(e.OutOfMemory, func(o *guestv1.OutOfMemory) bool { return o.ContainerId == id })
		if i < 0 {
			return nil
		}
		return e.OutOfMemory[i]
	}

	t.Run("at the container's limit", func(t *testing.T) {
		if e := events(0, true); e.Sequence != 0 || len(e.OutOfMemory) != 0 {
			t.Fatalf("before: %v", e)
		}
		r := m.Start(agenttest.Config{ID: "o", Args: []string{"sleep", "1000"}, Spec: withMemory(32 << 20)}, fs)
		defer r.MustDelete()
		defer r.Wait()
		defer func() { _ = r.Kill(9, true) }()
		var seen uint64
		for i := range 2 {
			if out := ask(t, r, "hog", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1; echo $?"); out != "137\n" {
				t.Errorf("exit code %q", out)
			}
			e := events(seen, false) // returns as there is something new
			o := of(e, r.ID)
			if e.Sequence <= seen || o.GetTimes() != uint64(i+1) || o.GetKilled() != uint64(i+1) || o.GetMachine() {
				t.Errorf("after %d kills: %v", i+1, e)
			}
			seen = e.Sequence
		}
		waiting := make(chan error, 1)
		go func() {
			_, err := m.Guest.WaitEvents(ctx, &guestv1.WaitEventsRequest{After: seen})
			waiting <- err
		}()
		select {
		case err := <-waiting:
			t.Errorf("it does not wait: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		if o := of(events(0, true), r.ID); o.GetTimes() != 2 {
			t.Errorf("%v", o)
		}
	})

	t.Run("the machine's", func(t *testing.T) {
		r := m.Start(agenttest.Config{ID: "g", Args: []string{"sleep", "1000"}}, fs)
		defer r.MustDelete()
		defer r.Wait()
		defer func() { _ = r.Kill(9, true) }()
		// Two together take more than it has; one alone would not be let try.
		const hog = "dd if=/dev/zero of=/dev/null bs=250M count=2"
		ask(t, r, "hog", "sh", "-c", hog+" & "+hog+"; wait")
		if o := of(events(0, true), r.ID); o.GetTimes() != 1 || !o.GetMachine() {
			t.Errorf("%v", o)
		}
		if out := ask(t, r, "after", "echo", "alive"); out != "alive\n" {
			t.Errorf("output %q", out)
		}
	})
}
