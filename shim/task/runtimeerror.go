package task

import (
	"fmt"
	"strings"
)

// runtimeError gives an error of the guest the form in which clients know
// runc's, and look into it: "OCI runtime create failed: runc create failed:
// unable to start container process: exec: \"x\": executable file not found in $PATH".
func runtimeError(prefix string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", prefix, err)
}

// exitStatusOf is the exit status, by the shell's convention (POSIX, Shell
// Command Language 2.8.2), of a process that err kept from starting: 127 if its
// program was not found, 126 if it could not be run.
func exitStatusOf(err error) uint32 {
	text := err.Error()
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory"):
		return 127
	case strings.Contains(text, "permission denied"), strings.Contains(text, "exec format error"), strings.Contains(text, "is a directory"):
		return 126
	}
	return 255
}
