//go:build unix

package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/log"
)

// Deadlines for logging programs. loggerExit is how long one may work on by
// itself when both streams have ended, loggerTerm how long after a SIGTERM: as
// long as containerd's runc shim gives it.
const (
	loggerReady = 30 * time.Second
	loggerExit  = 10 * time.Second
	loggerTerm  = 12 * time.Second
)

// logger is a logging program, run by the protocol of containerd's binary://
// URIs (containerd, core/runtime/v2/logging): it reads stdout from descriptor 3,
// stderr from 4, and closes 5 when it is ready.
type logger struct {
	stdout, stderr *output
	cmd            *exec.Cmd
	done           chan struct{} // closed when the program has ended
}

// startLogger starts the program and waits until it is ready.
func startLogger(ctx context.Context, cfg Config) (_ *logger, err error) {
	u, err := url.Parse(cfg.Stdout)
	if err != nil {
		return nil, fmt.Errorf("logging program %q: %w", cfg.Stdout, err)
	}
	args, err := loggerArgs(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("logging program %q: %w", cfg.Stdout, err)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	pipe := func() (r, w *os.File, err error) {
		r, w, err = os.Pipe()
		if err == nil {
			files = append(files, r, w)
		}
		return r, w, err
	}
	outR, outW, err := pipe()
	if err != nil {
		return nil, err
	}
	errR, errW, err := pipe()
	if err != nil {
		return nil, err
	}
	readyR, readyW, err := pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(u.Path, args...)
	cmd.Env = []string{"CONTAINER_ID=" + cfg.ID, "CONTAINER_NAMESPACE=" + cfg.Namespace}
	cmd.ExtraFiles = []*os.File{outR, errR, readyW}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the logging program: %w", err)
	}
	l := &logger{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(l.done)
	}()
	readyW.Close()
	if err := awaitReady(ctx, readyR, u.Scheme == "binary-v2"); err != nil {
		cmd.Process.Kill()
		<-l.done
		return nil, fmt.Errorf("logging program %s: %w", u.Path, err)
	}
	l.stdout, l.stderr = &output{File: outW}, &output{File: errW}
	files = []*os.File{outR, errR, readyR}
	return l, nil
}

// loggerArgs makes a program's arguments from a URI's query, key and value in
// turn, in the order in which they stand there.
func loggerArgs(query string) ([]string, error) {
	var args []string
	for kv := range strings.SplitSeq(query, "&") {
		if kv == "" {
			continue
		}
		k, v, _ := strings.Cut(kv, "=") // a key alone has an empty value
		for _, s := range []string{k, v} {
			s, err := url.QueryUnescape(s)
			if err != nil {
				return nil, err
			}
			args = append(args, s)
		}
	}
	return args, nil
}

// awaitReady waits until the program closes r's other end. With mustWrite it
// must have written to it before, so that a crash is told from readiness.
func awaitReady(ctx context.Context, r *os.File, mustWrite bool) error {
	deadline := time.Now().Add(loggerReady)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := r.SetReadDeadline(deadline); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })()
	n, err := r.Read(make([]byte, 1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("was not ready within %v", loggerReady)
	case err != nil && err != io.EOF:
		return err
	case n == 0 && mustWrite:
		return errors.New("ended before it was ready")
	}
	return nil
}

// close ends the program. Its streams have ended by now; most programs then end
// by themselves, which is the only way for them to lose nothing.
func (l *logger) close() {
	_ = l.stdout.Close()
	_ = l.stderr.Close()
	if l.ended(loggerExit) {
		return
	}
	_ = l.cmd.Process.Signal(syscall.SIGTERM)
	if l.ended(loggerTerm) {
		return
	}
	log.L.Warnf("logging program %s did not end, killing it", l.cmd.Path)
	l.cmd.Process.Kill()
	<-l.done
}

func (l *logger) ended(within time.Duration) bool {
	select {
	case <-l.done:
		return true
	case <-time.After(within):
		return false
	}
}
