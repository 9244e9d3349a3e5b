// Command say logs one message of each level.
package main

import (
	"errors"
	"io"

	"github.com/containerd/log"

	"github.com/applevm/applevm/internal/unifiedlog"
)

func main() {
	unifiedlog.Install("test")
	log.L.Logger.SetOutput(io.Discard)
	_ = log.SetLevel("trace")
	log.L.Trace("trace")
	log.L.Debug("debug")
	log.L.WithField("b", 2).WithField("a", "x y").Info("info")
	log.L.WithError(errors.New("two\nlines\x00")).Warn("warning: 100%s")
	log.L.Error("error")
}
