package vz

import (
	"os"
	"os/exec"
	"sync"
)

// workDir is a directory that is removed when this process has ended, however it did: the
// framework's machines leave nothing behind either.
type workDir struct {
	path   string
	remove func() error // at once; safe to call again
}

func newWorkDir() (*workDir, error) {
	path, err := os.MkdirTemp("", "vz")
	if err != nil {
		return nil, err
	}
	// Its standard input ends when it is closed here, or with this process.
	cmd := exec.Command("sh", "-c", `read _; rm -rf "$1"`, "sh", path)
	alive, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		_ = os.Remove(path)
		return nil, err
	}
	return &workDir{path: path, remove: sync.OnceValue(func() error {
		_ = alive.Close()
		return cmd.Wait()
	})}, nil
}
