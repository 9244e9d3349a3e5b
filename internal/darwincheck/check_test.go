package main

import (
	"strings"
	"testing"
)

func TestWrongUseIsFound(t *testing.T) {
	for _, arch := range []string{"arm64", "amd64"} {
		r, err := check(arch, "./testdata/wrong")
		if err != nil {
			t.Fatal(err)
		}
		var all strings.Builder
		for _, e := range r.errors {
			all.WriteString(e.Error() + "\n")
		}
		for _, want := range []string{"wrong_darwin.go:8:", "NewLinuxBootLoader", "wrong_darwin.go:12:", "NewVirtualMachine", "wrong_darwin.go:13:", "Hibernate"} {
			if !strings.Contains(all.String(), want) {
				t.Errorf("%s: %q is not among the errors:\n%s", arch, want, &all)
			}
		}
		if r.own != 1 || r.cgo != 1 || r.others < 50 {
			t.Errorf("%s: %+v", arch, r)
		}
	}
}

func TestDriverIsSound(t *testing.T) {
	r, err := check("arm64", "../../vmm/vz", "../../shim/machine")
	if err != nil || len(r.errors) > 0 || r.own != 2 || r.cgo != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestNothingToCheckIsAnError(t *testing.T) {
	if _, err := check("arm64", "./nosuch"); err == nil {
		t.Error("a pattern that matches nothing passed")
	}
}
