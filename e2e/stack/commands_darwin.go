package stack

import (
	"os/exec"
	"strconv"
	"strings"
)

// commands lists the host's processes: ps(1), whose -E shows the environment of one's own behind
// the arguments.
func commands() []command {
	var all []command
	out, _ := exec.Command("ps", "-axwwE", "-o", "pid=,command=").Output()
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if pid, err := strconv.Atoi(f[0]); err == nil {
			all = append(all, command{pid, f[1:], line})
		}
	}
	return all
}
