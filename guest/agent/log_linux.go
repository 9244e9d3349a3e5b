package agent

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
)

// LogFormat is the format of the agent's log, which goes to the console: the last
// lines of that are in the error of a machine that fails.
type LogFormat struct{}

// Format implements logrus.Formatter.
func (LogFormat) Format(e *logrus.Entry) ([]byte, error) {
	// libcontainer says so of each hook that is a function, whenever it writes a
	// container's configuration down. The agent's are not meant to be in it.
	if strings.HasPrefix(e.Message, "cannot serialize hook of type configs.FuncHook") {
		return nil, nil
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s: %s", e.Level, e.Message)
	keys := make([]string, 0, len(e.Data))
	for k := range e.Data {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, " %s=%v", k, e.Data[k])
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}
