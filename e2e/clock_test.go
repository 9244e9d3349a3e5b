package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/stack"
)

// rightWithin is how far a guest's clock may be from the host's.
const rightWithin = 10 * time.Millisecond

// tellTime answers each line with the time, without a process for each.
const tellTime = `while read line; do echo $EPOCHREALTIME; done`

// guestClock is a program in a container that tells the time.
type guestClock struct {
	in   io.Writer
	out  *bufio.Reader
	stop func()
}

// startClock runs cmd, which is to run tellTime.
func startClock(t *testing.T, cmd *exec.Cmd) guestClock {
	t.Helper()
	in, out := started(t, cmd)
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return guestClock{in, bufio.NewReader(out), func() { _ = cmd.Process.Kill() }}
}

// look asks for the time once: it is off by off, give or take half the round trip.
func (c guestClock) look(t *testing.T) (off, sure time.Duration) {
	t.Helper()
	defer time.AfterFunc(limit, c.stop).Stop()
	before := time.Now()
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		t.Fatal(err)
	}
	line, err := c.out.ReadString('\n')
	trip := time.Since(before)
	if err != nil {
		t.Fatal(err)
	}
	seconds, micros, _ := strings.Cut(strings.TrimSpace(line), ".")
	s, err1 := strconv.ParseInt(seconds, 10, 64)
	us, err2 := strconv.ParseInt(micros, 10, 64)
	if err1 != nil || err2 != nil {
		t.Fatalf("the time is %q", line)
	}
	return time.Unix(s, us*1000).Sub(before.Round(0).Add(trip / 2)), trip / 2
}

// best is the surest of some looks.
func (c guestClock) best(t *testing.T) (off, sure time.Duration) {
	t.Helper()
	off, sure = c.look(t)
	for range 20 {
		if o, s := c.look(t); s < sure {
			off, sure = o, s
		}
	}
	return off, sure
}

// right requires that the clock is right, as far as the round trip lets one say.
func (c guestClock) right(t *testing.T, when string) {
	t.Helper()
	off, sure := c.best(t)
	t.Logf("%s: off by %v ± %v", when, off, sure)
	if off.Abs()-sure > rightWithin {
		t.Errorf("%s the clock is off by %v ± %v", when, off, sure)
	}
}

// becomesRight waits until it is.
func (c guestClock) becomesRight(t *testing.T, when string) {
	t.Helper()
	off, sure := c.best(t)
	t.Logf("%s: off by %v ± %v at first", when, off, sure)
	waitFor(t, "the right time "+when, func() bool {
		off, sure := c.best(t)
		return off.Abs() <= rightWithin+sure
	})
}

// A machine's clock is right from the start, after a pause, after its VMM was stopped,
// as it is while the host sleeps, and after somebody has set it.
func TestClock(t *testing.T) {
	s := userStack(t)
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	c := startClock(t, s.CtrRun(t.Context(), "--privileged", img, id, "bash", "-c", tellTime))
	c.right(t, "at the start")
	must(t, s.Ctr(t.Context(), "task", "pause", id))
	time.Sleep(2 * time.Second)
	must(t, s.Ctr(t.Context(), "task", "resume", id))
	c.right(t, "after a pause")

	if runtime.GOOS != "darwin" { // whose machines run in a process of Apple's
		stopVMM(t, s, 20*time.Second)
		c.becomesRight(t, "after a stop")
	}

	for i, by := range []string{"+5 seconds", "-1 hour", "+30 days"} {
		must(t, s.CtrExec(t.Context(), "--exec-id", fmt.Sprint("set", i), id, "date", "-s", by))
		c.becomesRight(t, "after a change by "+by)
	}
}

// stopVMM stops the stack's one VMM for a while.
func stopVMM(t *testing.T, s *stack.Stack, d time.Duration) {
	t.Helper()
	vmms := s.VMMs()
	if len(vmms) != 1 {
		t.Fatalf("machines: %v", vmms)
	}
	if err := syscall.Kill(vmms[0].PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(d)
	if err := syscall.Kill(vmms[0].PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}
