package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// measuredArg makes the bench a process that runs a command and prints what that
// took:
//
//	bench measured COMMAND [ARG...]
const measuredArg = "measured"

// measurement is what such a process prints.
type measurement struct {
	// CPU and Wall are what the command took from exec to exit, with the children it
	// waited for, in seconds.
	CPU  float64 `json:"cpu"`
	Wall float64 `json:"wall"`
	// Answer is what the command printed.
	Answer json.RawMessage `json:"answer"`
}

// measuredMain is that process.
func measuredMain(argv []string) error {
	if len(argv) == 0 {
		return errors.New("usage: bench measured COMMAND [ARG...]")
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	start := time.Now()
	out, err := cmd.Output()
	wall := time.Since(start)
	if err != nil {
		return fmt.Errorf("%v: %w", argv, err)
	}
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return json.NewEncoder(os.Stdout).Encode(measurement{CPU: cpu.Seconds(), Wall: wall.Seconds(), Answer: out})
}

// measure runs argv, which ends in a measured process, and returns what that
// printed. The answer is decoded into answer.
func measure(ctx context.Context, argv []string, answer any) (measurement, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// A group of its own, so that what the process has started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return measurement{}, fmt.Errorf("%v: %w: %s", argv, err, bytes.TrimSpace(stderr.Bytes()))
	}
	var m measurement
	if err := errors.Join(json.Unmarshal(out, &m), json.Unmarshal(m.Answer, answer)); err != nil {
		return measurement{}, fmt.Errorf("%v: its answer %q: %w", argv, out, err)
	}
	return m, nil
}
