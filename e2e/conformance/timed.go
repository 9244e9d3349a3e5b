package main

import (
	"path"
	"strings"
)

// timed are tests of the suite that give a shim a time which an emulated processor needs
// almost whole, and misses when others on the host take it. One that fails is run again,
// by itself; what is no matter of time fails again.
var timed = map[string]string{
	"ExecOutputDrainAfterExit": "8 MiB of output within 2 s of an exec's start, which takes 1 s under emulation on a host that does nothing else",
}

// attempts is how often such a test is run at the most.
const attempts = 3

// onlyTimed returns the failed tests if all of them are timed, else none. Their parents
// have failed with them.
func onlyTimed(failed []string) []string {
	var leaves []string
	for _, name := range failed {
		parent := false
		for _, other := range failed {
			parent = parent || strings.HasPrefix(other, name+"/")
		}
		switch {
		case parent:
		case timed[path.Base(name)] == "":
			return nil
		default:
			leaves = append(leaves, name)
		}
	}
	return leaves
}

// pattern is one test's for -test.run.
func pattern(name string) string { return "^" + strings.ReplaceAll(name, "/", "$/^") + "$" }
