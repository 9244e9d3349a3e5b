// Package shortdir makes directories for the sockets of tests.
package shortdir

import (
	"os"
	"testing"
)

// New returns a new directory whose name, unlike that of t.TempDir, leaves room
// for a socket's: a socket's whole path has at most 104 (darwin) or 108 bytes.
// It is removed when the test ends.
func New(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
