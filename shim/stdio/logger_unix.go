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
	"sync"
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

// Bounds of the pause before a logging program is run again. loggerDoubt is how long after
// a program's end containerd may still seem to be there if it was what the program ended
// for: a process that is killed closes its connections one by one, and its socket last.
const (
	loggerFirst = 50 * time.Millisecond
	loggerLast  = 2 * time.Second
	loggerDoubt = 2 * time.Second
)

// logger is a logging program, run by the protocol of containerd's binary://
// URIs (containerd, core/runtime/v2/logging): it reads stdout from descriptor 3,
// stderr from 4, and closes 5 when it is ready.
//
// nerdctl's ends when containerd does, whose task it waits for. It is run again then,
// on the same pipes, in which is what it has not read.
type logger struct {
	stdout, stderr *output
	path           string
	args, env      []string
	mustWrite      bool // binary-v2
	outR, errR     *os.File
	incarnation    func() string

	closing chan struct{} // closed when it shall not run again
	done    chan struct{} // closed when it has ended for good

	mu  sync.Mutex
	cmd *exec.Cmd
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
	l := &logger{
		path: u.Path, args: args, mustWrite: u.Scheme == "binary-v2",
		env:         []string{"CONTAINER_ID=" + cfg.ID, "CONTAINER_NAMESPACE=" + cfg.Namespace},
		incarnation: cfg.Incarnation,
		closing:     make(chan struct{}),
		done:        make(chan struct{}),
	}
	var outW, errW *os.File
	if l.outR, outW, err = os.Pipe(); err != nil {
		return nil, err
	}
	if l.errR, errW, err = os.Pipe(); err != nil {
		return nil, errors.Join(err, l.outR.Close(), outW.Close())
	}
	l.stdout, l.stderr = &output{File: outW}, &output{File: errW}
	began := ""
	if l.incarnation != nil {
		began = l.incarnation()
	}
	ended, err := l.run(ctx)
	if err != nil {
		_, _ = l.stdout.Close(), l.stderr.Close()
		_, _ = l.outR.Close(), l.errR.Close()
		return nil, err
	}
	go l.keep(began, ended)
	return l, nil
}

// run starts the program and waits until it is ready. ended is closed at its end.
func (l *logger) run(ctx context.Context) (ended <-chan struct{}, _ error) {
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer readyR.Close()
	cmd := exec.Command(l.path, l.args...)
	cmd.Env = l.env
	cmd.ExtraFiles = []*os.File{l.outR, l.errR, readyW}
	err = cmd.Start()
	readyW.Close()
	if err != nil {
		return nil, fmt.Errorf("start the logging program: %w", err)
	}
	l.mu.Lock()
	l.cmd = cmd
	l.mu.Unlock()
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	if err := awaitReady(ctx, readyR, l.mustWrite); err != nil {
		_ = cmd.Process.Kill()
		<-done
		return nil, fmt.Errorf("logging program %s: %w", l.path, err)
	}
	return done, nil
}

// keep runs the program again when it has ended and containerd is away, or another
// than the one at its start, began. Any other end is the program's own: then nobody
// reads any more.
func (l *logger) keep(began string, ended <-chan struct{}) {
	defer close(l.done)
	defer l.errR.Close()
	defer l.outR.Close()
	for wait := loggerFirst; ; {
		<-ended
		for {
			if l.incarnation == nil || l.finished() {
				return
			}
			now, same := l.outlived(began)
			if same {
				return
			}
			select {
			case <-time.After(wait):
			case <-l.closing:
				return
			}
			wait = min(2*wait, loggerLast)
			next, err := l.run(context.Background()) // bounded by loggerReady
			if err == nil {
				log.L.Infof("logging program %s runs again: containerd, which it waits for, was restarted", l.path)
				began, ended = now, next
				break
			}
			log.L.WithError(err).Warn("a logging program does not start again")
		}
	}
}

// outlived tells whether the run of containerd in which the program began goes on after
// the program's end, and which is there.
func (l *logger) outlived(began string) (now string, same bool) {
	for end := time.Now().Add(loggerDoubt); ; {
		now = l.incarnation()
		if now != began || now == "" {
			return now, false
		}
		if time.Now().After(end) {
			return now, true
		}
		select {
		case <-time.After(loggerFirst):
		case <-l.closing:
			return now, true
		}
	}
}

// finished tells whether there is nothing left to read.
func (l *logger) finished() bool {
	return l.stdout.closed() && l.stderr.closed() && pending(l.outR) == 0 && pending(l.errR) == 0
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
	close(l.closing)
	l.signal(syscall.SIGTERM)
	if l.ended(loggerTerm) {
		return
	}
	log.L.Warnf("logging program %s did not end, killing it", l.path)
	l.signal(syscall.SIGKILL)
	<-l.done
}

func (l *logger) signal(sig os.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.cmd.Process.Signal(sig)
}

func (l *logger) ended(within time.Duration) bool {
	select {
	case <-l.done:
		return true
	case <-time.After(within):
		return false
	}
}
