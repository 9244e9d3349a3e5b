//go:build !linux

package main

import "context"

var sharingGroup = group{
	rows: []string{"sharing"},
	run: func(_ context.Context, e *env) error {
		e.report.leftOut("sharing", "what it is compared with is QEMU's, on Linux")
		return nil
	},
}
