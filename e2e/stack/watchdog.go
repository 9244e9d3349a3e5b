package stack

import (
	"fmt"
	"io"
	"os/exec"
	"syscall"
)

// watchdog ends all processes of a stack and removes its directory once the
// process that made it is gone, even by SIGKILL: then its pipe closes.
type watchdog struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

const watchdogScript = `
read -r word && [ "$word" = dismissed ] && exit 0
for round in 1 2 3; do
  for p in /proc/[0-9]*; do
    pid=${p#/proc/}
    [ "$pid" = $$ ] && continue
    if grep -qsF "$1/" "$p/cmdline" || grep -qsF "$1/" "$p/environ"; then kill -9 "$pid" 2>/dev/null; fi
  done
  sleep 0.2
done
grep -F " $1/" /proc/self/mounts | while read -r _ m _; do umount -l "$m"; done
rm -rf "$1"
`

func startWatchdog(dir string) (*watchdog, error) {
	cmd := exec.Command("/bin/sh", "-c", watchdogScript, "watchdog", dir)
	// A session of its own: what kills the caller's process group spares it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	return &watchdog{cmd: cmd, in: in}, nil
}

func (w *watchdog) pid() int { return w.cmd.Process.Pid }

// dismiss ends the watchdog without any work done.
func (w *watchdog) dismiss() {
	_, _ = io.WriteString(w.in, "dismissed\n")
	_ = w.in.Close()
	_ = w.cmd.Wait()
}

// Watch has all processes that have dir in their arguments or environment ended, and dir
// removed, once the caller's process is gone; dismiss takes that back. It is for tests
// that start what a Stack does not.
func Watch(dir string) (dismiss func(), err error) {
	w, err := startWatchdog(dir)
	if err != nil {
		return nil, err
	}
	return w.dismiss, nil
}
