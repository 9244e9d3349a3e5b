package task

import (
	"math"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/guest/api"
)

// What a hostile guest may send as statistics neither gets far nor breaks a client.
func TestStatisticsAreChecked(t *testing.T) {
	pack := func(m *stats.Metrics) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for name, bad := range map[string]*anypb.Any{
		"nothing":    nil,
		"other type": {TypeUrl: "x/y", Value: []byte{}},
		"too long":   {TypeUrl: metricsType, Value: make([]byte, api.MaxStats+1)},
		"broken":     {TypeUrl: metricsType, Value: []byte{0xff}},
	} {
		if _, err := metrics(bad, 1); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	m, err := metrics(pack(&stats.Metrics{
		Memory:  &stats.MemoryStat{UsageLimit: math.MaxUint64, PSI: &stats.PSIStats{Some: &stats.PSIData{Avg10: math.NaN()}}},
		Hugetlb: []*stats.HugeTlbStat{{Pagesize: "\x1b[2J"}},
	}), 77)
	if err != nil {
		t.Fatal(err)
	}
	if m.Pids == nil || m.CPU == nil || m.Io == nil || m.Memory.UsageLimit != 77 || m.Memory.PSI.Some.Avg10 != 0 || m.Hugetlb[0].Pagesize != "\uFFFD[2J" {
		t.Errorf("%v", m)
	}
}
