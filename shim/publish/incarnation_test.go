package publish

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestIncarnation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if got := Incarnation(path); got != "" {
		t.Errorf("%q before the first run", got)
	}
	seen := map[string]bool{"": true}
	for range 3 {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		got := Incarnation(path)
		if seen[got] || Incarnation(path) != got {
			t.Errorf("%q is not one run's alone", got)
		}
		seen[got] = true
		_ = l.Close()
		if got := Incarnation(path); got != "" {
			t.Errorf("%q between two runs", got)
		}
		time.Sleep(20 * time.Millisecond) // the file system's clock is no finer than a tick
	}
}
