//go:build !linux

package main

import "context"

var networkGroup = group{
	rows: []string{"network"},
	run: func(_ context.Context, e *env) error {
		e.report.leftOut("network", "the rows need Linux's network namespaces")
		return nil
	},
}
