// darwincheck type-checks the project for macOS on any host, cgo included: what needs
// Virtualization.framework cannot be compiled off a Mac, but its Go can be checked
// against the framework's real binding (github.com/Code-Hex/vz).
//
//	go run ./internal/darwincheck
//
// go list names the files that a build on a Mac would take; each package is checked by
// go/types with FakeImportC, which leaves open only what comes from C.
package main

import (
	"fmt"
	"os"
)

func main() {
	bad := false
	for _, arch := range []string{"arm64", "amd64"} {
		r, err := check(arch, "./...")
		if err != nil {
			fmt.Fprintln(os.Stderr, "darwincheck:", err)
			os.Exit(1)
		}
		for _, e := range r.errors {
			fmt.Fprintln(os.Stderr, e)
		}
		fmt.Printf("darwin/%s: %d packages of the project checked, %d of them with cgo behind them, against %d others: %d errors\n",
			arch, r.own, r.cgo, r.others, len(r.errors))
		bad = bad || len(r.errors) > 0
	}
	if bad {
		os.Exit(1)
	}
}
