package wake

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// The C that is compiled on a Mac, with a stand-in for its headers: a night in which the
// system asks, sleeps and wakes.
func TestAllAreToldThatTheHostHasWoken(t *testing.T) {
	include, err := filepath.Abs("testdata/include")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "watch")
	build := exec.Command("go", "build", "-tags", "macsim", "-o", bin, "./testdata/watch")
	build.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-Wall -Werror -Wno-unused -I"+include)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(bin).CombinedOutput()
	if want := "allowed 7 11\nallowed 7 12\nwoken 2\n"; err != nil || string(out) != want {
		t.Errorf("%v: got %s\nwant %s", err, out, want)
	}
}

func TestOtherSystemsDoNotTell(t *testing.T) {
	if runtime.GOOS == "darwin" {
		return // it tells
	}
	if err := Notify(t.Context(), func() {}); err == nil {
		t.Error("no error")
	}
}
