// Package tig stands in for a package of nerdctl's unpublished test module,
// of which nerdctl's commands use this one interface.
package tig

// T is what nerdctl needs of testing.T.
type T interface {
	Cleanup(func())
	Fail()
	FailNow()
	Helper()
	Log(args ...any)
	Name() string
	TempDir() string
}
