package unifiedlog

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
)

// The C that is compiled on a Mac, with a stand-in for its header.
func TestMessagesReachTheSystem(t *testing.T) {
	include, err := filepath.Abs("testdata/include")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "say")
	build := exec.Command("go", "build", "-tags", "macsim", "-o", bin, "./testdata/say")
	build.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-Wall -Werror -I"+include)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(bin).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const want = `dev.applevm test 0x2 %{public}s trace
dev.applevm test 0x1 %{public}s debug
dev.applevm test 0 %{public}s info a="x y" b="2"
dev.applevm test 0 %{public}s warning: 100%s error="two\nlines\x00"
dev.applevm test 0x10 %{public}s error
`
	if string(out) != want {
		t.Errorf("got %s\nwant %s", out, want)
	}
}

func TestKinds(t *testing.T) {
	for _, l := range logrus.AllLevels {
		want := map[logrus.Level]kind{logrus.PanicLevel: 0x11, logrus.FatalLevel: 0x11, logrus.ErrorLevel: 0x10, logrus.DebugLevel: 1, logrus.TraceLevel: 2}[l]
		if got := kindOf(l); got != want {
			t.Errorf("%v is %#x, want %#x", l, got, want)
		}
	}
	if got := text(&logrus.Entry{Message: "a\nb\x00"}); got != `a\nb\x00` {
		t.Errorf("%q", got)
	}
}
