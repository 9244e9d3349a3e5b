package main

import (
	"maps"
	"testing"
)

func TestPhasesOf(t *testing.T) {
	const line = "BenchmarkShim/StartupPhases-2         	       2	 120273438 ns/op	         0 ms/connect	        77.00 ms/create" +
		"	         0.5 ms/output	        13.50 ms/shim-start	        28.50 ms/task-start	       120.0 ms/total\n"
	want := map[string]float64{"connect": 0, "create": 77, "output": 0.5, "shim-start": 13.5, "task-start": 28.5, "total": 120}
	got, err := phasesOf("goos: linux\ncpu: x\n" + line + "PASS\n")
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for name, out := range map[string]string{
		"nothing":       "PASS\n",
		"other numbers": "BenchmarkShim/Start-2 2 1 ns/op\n",
		"a part":        "BenchmarkShim/StartupPhases-2 2 1 ns/op 5 ms/create\n",
		"no number":     "BenchmarkShim/StartupPhases-2 2 1 ns/op x ms/create\n",
	} {
		if m, err := phasesOf(out); err == nil {
			t.Errorf("%s: %v", name, m)
		}
	}
}
