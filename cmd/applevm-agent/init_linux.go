//go:build cgo

package main

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"

	// The container's namespaces are entered in C, before Go's runtime starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		// The container's program takes this thread over.
		ordinarySlack()
		libcontainer.Init()
	}
}
