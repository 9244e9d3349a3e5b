package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/containerd/log"

	"github.com/applevm/applevm/guest/stream"
)

// bufferSize is the size of a stream's copy buffer in bytes. With the frame that
// the stream's reader holds it is all the memory that a stream takes.
const bufferSize = 32 << 10

// Config says where a process's streams go, as containerd's task API does.
type Config struct {
	// Namespace and ID name the container for logging programs.
	Namespace, ID string
	// Stdin and Stderr are paths of FIFOs, or empty. Stdout is the path of a
	// FIFO, or a URI: fifo://, file://, binary:// or binary-v2:// (a logging
	// program, which gets both output streams). file and binary URIs hold for
	// both output streams.
	Stdin, Stdout, Stderr string
	// Terminal processes have one output stream, stdout.
	Terminal bool
}

// IO is the host's end of a process's streams.
type IO struct {
	stdin, stdout, stderr *end
	keepOpen              io.Closer // see openStdin
	logger                *logger

	ctx    context.Context
	cancel context.CancelCauseFunc
	output sync.WaitGroup
	all    sync.WaitGroup

	stdinOnce, closeOnce sync.Once
}

// end is one stream: its name in the guest and its file on the host.
type end struct {
	name  string // for logs
	token stream.Token
	slot  *slot
	src   io.ReadCloser  // of stdin
	dst   io.WriteCloser // of stdout and stderr
}

// errClosed ends the streams of an IO that is closed.
var errClosed = errors.New("stdio is closed")

// Open opens the host's end of the streams and starts the logging program if
// there is one; ctx bounds that alone. It does not need the guest.
func Open(ctx context.Context, cfg Config) (*IO, error) {
	s := &IO{}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := s.open(ctx, cfg); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *IO) open(ctx context.Context, cfg Config) error {
	if cfg.Terminal {
		cfg.Stderr = ""
	}
	if cfg.Stdin != "" {
		src, keep, err := openStdin(cfg.Stdin)
		if err != nil {
			return fmt.Errorf("open stdin: %w", err)
		}
		s.stdin = &end{name: "stdin", token: stream.NewToken(), src: src}
		s.keepOpen = keep
	}
	stdout, stderr, err := s.openOutput(ctx, cfg)
	if stdout != nil {
		s.stdout = &end{name: "stdout", token: stream.NewToken(), dst: stdout}
	}
	if stderr != nil {
		s.stderr = &end{name: "stderr", token: stream.NewToken(), dst: stderr}
	}
	return err
}

// openOutput opens what stdout and stderr go to; nil where there is no stream.
func (s *IO) openOutput(ctx context.Context, cfg Config) (stdout, stderr io.WriteCloser, err error) {
	scheme, path := splitURI(cfg.Stdout)
	switch scheme {
	case "binary", "binary-v2":
		s.logger, err = startLogger(ctx, cfg)
		if err != nil {
			return nil, nil, err
		}
		if cfg.Terminal {
			_ = s.logger.stderr.Close()
			return s.logger.stdout, nil, nil
		}
		return s.logger.stdout, s.logger.stderr, nil
	case "file":
		if stdout, err = openFile(path); err != nil {
			return nil, nil, fmt.Errorf("open stdout: %w", err)
		}
		if !cfg.Terminal {
			if stderr, err = openFile(path); err != nil {
				return stdout, nil, fmt.Errorf("open stderr: %w", err)
			}
		}
		return stdout, stderr, nil
	case "fifo":
	default:
		return nil, nil, fmt.Errorf("stdout %q: the scheme %q is not implemented, use fifo, file or binary", cfg.Stdout, scheme)
	}
	if path != "" {
		if stdout, err = openOutput(path); err != nil {
			return nil, nil, fmt.Errorf("open stdout: %w", err)
		}
	}
	if _, path := splitURI(cfg.Stderr); path != "" {
		if stderr, err = openOutput(path); err != nil {
			return stdout, nil, fmt.Errorf("open stderr: %w", err)
		}
	}
	return stdout, stderr, nil
}

// splitURI divides a stream's address; a plain path is a FIFO's.
func splitURI(s string) (scheme, path string) {
	scheme, path, ok := strings.Cut(s, "://")
	if !ok {
		return "fifo", s
	}
	return scheme, path
}

// Names returns the names under which the guest finds the streams, empty where
// there is none.
func (s *IO) Names() (stdin, stdout, stderr string) {
	name := func(e *end) string {
		if e == nil {
			return ""
		}
		return e.token.String()
	}
	return name(s.stdin), name(s.stdout), name(s.stderr)
}

// Copy begins to carry bytes over the connections that the guest will make to
// h. It returns at once.
func (s *IO) Copy(h *Hub) {
	for _, e := range []*end{s.stdout, s.stderr} {
		if e == nil {
			continue
		}
		e.slot = h.expect(e.token)
		s.output.Add(1)
		s.all.Go(func() {
			defer s.output.Done()
			s.copyOut(e)
		})
	}
	if e := s.stdin; e != nil {
		e.slot = h.expect(e.token)
		s.all.Go(func() { s.copyIn(e) })
	}
}

// copyOut carries the guest's output to its destination. The end of the stream
// closes the destination at once: clients wait for that.
func (s *IO) copyOut(e *end) {
	defer e.dst.Close()
	conn, err := e.slot.wait(s.ctx)
	if err != nil {
		s.warn(e, err)
		return
	}
	defer conn.Close()
	defer closeOnDone(s.ctx, conn)()
	buf := make([]byte, bufferSize)
	r := stream.NewReader(conn)
	w := &sink{w: e.dst, failed: func(err error) { s.warn(e, err) }}
	if _, err := io.CopyBuffer(w, struct{ io.Reader }{r}, buf); err != nil {
		s.warn(e, err)
	}
}

// copyIn carries the client's input into the guest, and its end.
func (s *IO) copyIn(e *end) {
	conn, err := e.slot.wait(s.ctx)
	if err != nil {
		s.warn(e, err)
		return
	}
	defer conn.Close()
	defer closeOnDone(s.ctx, conn)()
	w := stream.NewWriter(conn)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{e.src}, make([]byte, bufferSize)); err != nil {
		// The process has ended or closed its stdin: nobody wants the rest.
		log.G(s.ctx).WithError(err).Debug("stdin ended early")
		return
	}
	if err := w.Close(); err != nil {
		log.G(s.ctx).WithError(err).Debug("end of stdin not sent")
		return
	}
	// Closing right behind the end could reset the connection before the guest
	// has read everything: the guest closes first.
	_, _ = io.Copy(io.Discard, conn)
}

// closeOnDone closes conn when ctx ends, so that no read or write outlives it.
// The returned function stops that.
func closeOnDone(ctx context.Context, conn net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return func() { stop() }
}

func (s *IO) warn(e *end, err error) {
	if s.ctx.Err() == nil {
		log.G(s.ctx).WithError(err).WithField("stream", e.name).Warn("stream of a process was cut")
	}
}

// sink goes on taking bytes when its writer has failed (the log's disk is full,
// the logging program has died): a process must not hang because nobody listens.
type sink struct {
	w      io.Writer
	failed func(error)
	broken bool
}

func (s *sink) Write(p []byte) (int, error) {
	if s.broken {
		return len(p), nil
	}
	if _, err := s.w.Write(p); err != nil {
		s.broken = true
		s.failed(err)
	}
	return len(p), nil
}

// CloseStdin lets stdin end when its last writer has closed it.
func (s *IO) CloseStdin() {
	s.stdinOnce.Do(func() {
		if s.keepOpen != nil {
			s.keepOpen.Close()
		}
	})
}

// Wait returns when all output has been delivered, or with ctx's error.
func (s *IO) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		s.output.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close ends all streams, delivered or not, and the logging program, which gets
// time to write what it has.
func (s *IO) Close() {
	s.closeOnce.Do(func() {
		s.cancel(errClosed)
		s.CloseStdin()
		for _, e := range []*end{s.stdout, s.stderr} {
			if e != nil {
				e.dst.Close()
			}
		}
		if s.stdin != nil {
			s.stdin.src.Close()
		}
		s.all.Wait()
		if s.logger != nil {
			s.logger.close()
		}
	})
}

// onceCloser is a file that may be closed twice, and what is closed with it.
type onceCloser struct {
	*os.File
	also io.Closer
	once sync.Once
	err  error
}

func (c *onceCloser) Close() error {
	c.once.Do(func() {
		c.err = c.File.Close()
		if c.also != nil {
			c.also.Close()
		}
	})
	return c.err
}
