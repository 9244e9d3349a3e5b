package agent

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestMergeResources(t *testing.T) {
	old := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
		Memory:  &specs.LinuxMemory{Limit: new(int64(64)), Swap: new(int64(128))},
		CPU:     &specs.LinuxCPU{Quota: new(int64(1000)), Period: new(uint64(2000)), Cpus: "0"},
		Unified: map[string]string{"memory.high": "1"},
	}
	before, _ := json.Marshal(old)
	for _, tc := range []struct {
		name, update string
		want         func(*specs.LinuxResources)
	}{
		{"nothing", `{}`, func(*specs.LinuxResources) {}},
		{"null", `{"memory":null}`, func(r *specs.LinuxResources) { r.Memory = nil }},
		{"one of two", `{"cpu":{"quota":5}}`, func(r *specs.LinuxResources) { r.CPU.Quota = new(int64(5)) }},
		{"devices stay", `{"devices":[{"allow":true,"access":"rwm"}]}`, func(*specs.LinuxResources) {}},
		{"unified is added to", `{"unified":{"memory.low":"2"}}`, func(r *specs.LinuxResources) { r.Unified["memory.low"] = "2" }},
		{"no limit, no swap limit", `{"memory":{"limit":-1}}`, func(r *specs.LinuxResources) { r.Memory = &specs.LinuxMemory{Limit: new(int64(-1))} }},
		{"no limit, swap limit given", `{"memory":{"limit":-1,"swap":-1}}`, func(r *specs.LinuxResources) {
			r.Memory = &specs.LinuxMemory{Limit: new(int64(-1)), Swap: new(int64(-1))}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := mergeResources(old, []byte(tc.update))
			if err != nil {
				t.Fatal(err)
			}
			want := &specs.LinuxResources{}
			if err := json.Unmarshal(before, want); err != nil {
				t.Fatal(err)
			}
			tc.want(want)
			if !reflect.DeepEqual(got, want) {
				g, _ := json.Marshal(got)
				w, _ := json.Marshal(want)
				t.Errorf("got  %s\nwant %s", g, w)
			}
			if after, _ := json.Marshal(old); string(after) != string(before) {
				t.Errorf("the old resources are changed: %s", after)
			}
		})
	}
	if got, err := mergeResources(nil, []byte(`{"pids":{"limit":3}}`)); err != nil || *got.Pids.Limit != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{``, `[]`, `{"memory":{"limit":"x"}}`} {
		if _, err := mergeResources(old, []byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestThrottleDisks(t *testing.T) {
	throttle := func(major, minor int64, rate uint64) (d specs.LinuxThrottleDevice) {
		d.Major, d.Minor, d.Rate = major, minor, rate
		return d
	}
	r := &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
		ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{throttle(8, 0, 30), throttle(8, 16, 20)},
	}}
	throttleDisks(r, []device{{254, 0}, {254, 16}})
	want := []specs.LinuxThrottleDevice{throttle(254, 0, 20), throttle(254, 16, 20)}
	if !reflect.DeepEqual(r.BlockIO.ThrottleReadBpsDevice, want) || r.BlockIO.ThrottleWriteBpsDevice != nil {
		t.Errorf("%+v", r.BlockIO)
	}
	throttleDisks(nil, nil)
	throttleDisks(&specs.LinuxResources{}, nil)
}

// The kernel's counters, one reading after the other, and what is made of them.
func TestOutOfMemoryIsCountedByOccasion(t *testing.T) {
	a := &Agent{oom: outOfMemory{changed: make(chan struct{})}, containers: map[string]*container{}}
	c := &container{id: "c", agent: a}
	a.containers[c.id] = c
	for i, step := range []struct {
		oom, oomKill, times uint64
		machine             bool
	}{
		{0, 0, 0, false},
		{1, 0, 0, false}, // between the kernel's two steps
		{1, 1, 1, false},
		{1, 1, 1, false}, // read again
		{2, 4, 2, false}, // a group of three
		{2, 5, 3, true},  // killed without having been at its limit
		{3, 6, 4, false},
		{2, 2, 4, false}, // an older reading comes late
	} {
		a.oom.note(c, step.oom, step.oomKill)
		e, err := a.waitEvents(context.Background(), 0, false)
		if err != nil {
			t.Fatal(err)
		}
		if step.times == 0 {
			if len(e.OutOfMemory) != 0 {
				t.Errorf("step %d: %v", i, e)
			}
			continue
		}
		if o := e.OutOfMemory[0]; e.Sequence != step.times || o.ContainerId != "c" || o.Times != step.times || o.Machine != step.machine {
			t.Errorf("step %d: %v", i, e)
		}
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	told := make(chan uint64)
	go func() {
		e, _ := a.waitEvents(ctx, 4, true)
		told <- e.GetSequence()
	}()
	a.oom.note(c, 9, 9)
	if got := <-told; got != 5 {
		t.Errorf("sequence %d", got)
	}
	cancel()
	if _, err := a.waitEvents(ctx, 5, true); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
