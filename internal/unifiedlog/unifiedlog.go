// Package unifiedlog has what a program logs go to macOS's unified log, too, by the system's
// own interface (os_log, in os/log.h):
//
//	log show --last 1h --predicate 'subsystem == "dev.applevm"'
//
// Elsewhere, and where it was built without cgo, it does nothing. macOS keeps about the
// first thousand bytes of a message; the log's file has all of it.
package unifiedlog

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// Subsystem is by what the log's readers find us.
const Subsystem = "dev.applevm"

// kind is a type of message, as os/log.h numbers them.
type kind uint8

const (
	kindDefault kind = 0x00 // kept on disk
	kindInfo    kind = 0x01 // in memory, unless somebody collects it
	kindDebug   kind = 0x02 // not even there, unless it is asked for
	kindError   kind = 0x10
	kindFault   kind = 0x11
)

// Install has the program's log go to the unified log as well, under a category.
func Install(category string) {
	if write := open(Subsystem, category); write != nil {
		log.L.Logger.AddHook(hook{write})
	}
}

// hook is logrus's.
type hook struct {
	write func(k kind, text string)
}

func (hook) Levels() []logrus.Level { return logrus.AllLevels }

func (h hook) Fire(e *logrus.Entry) error {
	h.write(kindOf(e.Level), text(e))
	return nil
}

// kindOf keeps on disk what a user may have to look up later: from info on, which is our
// word for what happens rarely.
func kindOf(l logrus.Level) kind {
	switch l {
	case logrus.PanicLevel, logrus.FatalLevel:
		return kindFault
	case logrus.ErrorLevel:
		return kindError
	case logrus.WarnLevel, logrus.InfoLevel:
		return kindDefault
	case logrus.DebugLevel:
		return kindInfo
	}
	return kindDebug
}

// text is an entry's message with its fields in their order, in one line and without
// NUL, at which C would end it.
func text(e *logrus.Entry) string {
	var b strings.Builder
	b.WriteString(e.Message)
	for _, k := range slices.Sorted(maps.Keys(e.Data)) {
		fmt.Fprintf(&b, " %s=%q", k, fmt.Sprint(e.Data[k]))
	}
	return strings.NewReplacer("\x00", `\x00`, "\n", `\n`).Replace(b.String())
}
