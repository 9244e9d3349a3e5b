package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
)

func TestLogFormat(t *testing.T) {
	std := logrus.StandardLogger()
	out, format, level := std.Out, std.Formatter, std.Level
	defer func() {
		std.SetOutput(out)
		std.SetFormatter(format)
		std.SetLevel(level)
	}()
	var b bytes.Buffer
	std.SetOutput(&b)
	std.SetFormatter(LogFormat{})
	std.SetLevel(logrus.WarnLevel)

	hooks := configs.Hooks{configs.CreateRuntime: {configs.NewFunctionHook(func(*specs.State) error { return nil })}}
	if _, err := json.Marshal(hooks); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 0 {
		t.Errorf("a hook that is a function: %q", &b)
	}
	logrus.Info("not shown")
	logrus.WithError(errors.New("no room")).WithField("disk", "a").Warn("container c: slow")
	logrus.Errorf("%d is odd", 3)
	if want := "warning: container c: slow disk=a error=no room\nerror: 3 is odd\n"; b.String() != want {
		t.Errorf("got %q, want %q", &b, want)
	}
}
