package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/containerd/log"

	"github.com/applevm/applevm/guest/stream"
)

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
	// OneClient lets stdin end when the client that has written to it closes it, not
	// only at CloseStdin: for a process that no later client can come back to.
	OneClient bool
	// Incarnation tells one run of containerd from another; it is empty while
	// containerd is away. nil if logging programs have nothing to do with it.
	Incarnation func() string
}

// IO is the host's end of a process's streams.
type IO struct {
	stdin          *stdin
	stdout, stderr *end
	logger         *logger

	ctx    context.Context
	cancel context.CancelCauseFunc
	output sync.WaitGroup // until all output has been written
	all    sync.WaitGroup

	closeOnce sync.Once
}

// stdin is the input stream: its name in the guest and its file on the host.
type stdin struct {
	token stream.Token
	slot  *slot
	src   *input
}

// end is one output stream.
type end struct {
	name  string // for logs
	token stream.Token
	slot  *slot
	dst   *output

	written  atomic.Int64  // bytes
	marked   chan struct{} // closed when all that the process itself wrote has been written
	markOnce sync.Once
	done     chan struct{} // closed when the stream has ended and was read
}

func newEnd(name string, dst *output) *end {
	return &end{name: name, token: stream.NewToken(), dst: dst, marked: make(chan struct{}), done: make(chan struct{})}
}

func (e *end) mark() { e.markOnce.Do(func() { close(e.marked) }) }

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
		src, err := openStdin(cfg.Stdin)
		if err != nil {
			return fmt.Errorf("open stdin: %w", err)
		}
		src.oneClient = cfg.OneClient
		s.stdin = &stdin{token: stream.NewToken(), src: src}
	}
	stdout, stderr, err := s.openOutput(ctx, cfg)
	if stdout != nil {
		s.stdout = newEnd("stdout", stdout)
	}
	if stderr != nil {
		s.stderr = newEnd("stderr", stderr)
	}
	return err
}

// outputs are the output streams that there are.
func (s *IO) outputs() []*end {
	var list []*end
	for _, e := range []*end{s.stdout, s.stderr} {
		if e != nil {
			list = append(list, e)
		}
	}
	return list
}

// openOutput opens what stdout and stderr go to; nil where there is no stream.
func (s *IO) openOutput(ctx context.Context, cfg Config) (stdout, stderr *output, err error) {
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
		if stdout, err = openLogFile(cfg.Stdout); err != nil {
			return nil, nil, fmt.Errorf("open stdout: %w", err)
		}
		if !cfg.Terminal {
			if stderr, err = openLogFile(cfg.Stdout); err != nil {
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
	if s.stdin != nil {
		stdin = s.stdin.token.String()
	}
	if s.stdout != nil {
		stdout = s.stdout.token.String()
	}
	if s.stderr != nil {
		stderr = s.stderr.token.String()
	}
	return stdin, stdout, stderr
}

// Copy begins to carry bytes over the connections that the guest will make to
// h. It returns at once.
func (s *IO) Copy(h *Hub) {
	for _, e := range s.outputs() {
		e.slot = h.expect(e.token)
		s.output.Add(1)
		s.all.Go(func() {
			defer close(e.done)
			defer func() { _ = e.dst.Close() }() // said by the last write, if it matters
			func() {
				defer s.output.Done()
				s.copyOut(e)
			}()
			s.awaitReader(e)
		})
	}
	if i := s.stdin; i != nil {
		i.slot = h.expect(i.token)
		s.all.Go(func() { s.copyIn(i) })
	}
}

// copyOut carries the guest's output to its destination, until its end or until
// nobody is left to read it. The guest then does to the writers what a pipe
// without a reader does.
func (s *IO) copyOut(e *end) {
	defer e.mark()
	conn, err := e.slot.wait(s.ctx)
	if err != nil {
		s.warn(e, err)
		return
	}
	defer conn.Close()
	defer closeOnDone(s.ctx, conn)()
	r := stream.NewReader(conn)
	r.OnMark = e.mark
	if _, err := r.WriteTo(&sink{end: e, failed: func(err error) { s.warn(e, err) }}); err != nil {
		if errors.Is(err, syscall.EPIPE) {
			log.G(s.ctx).WithField("stream", e.name).Debug("nobody reads the output of a process any more")
			return
		}
		s.warn(e, err)
	}
}

// copyIn carries the client's input into the guest, and its end. When nobody reads
// it any more in the guest, the FIFO is left alone until the process has ended: a
// client that writes to one without a reader gets a SIGPIPE, and ctr and nerdctl pass
// all their signals on to the process, which may only have closed its stdin.
func (s *IO) copyIn(i *stdin) {
	conn, err := i.slot.wait(s.ctx)
	if err != nil {
		if s.ctx.Err() == nil {
			log.G(s.ctx).WithError(err).Warn("stdin of a process was cut")
		}
		return
	}
	defer conn.Close()
	defer closeOnDone(s.ctx, conn)()
	// The guest sends nothing here: what ends the read is that it has closed, which
	// no write would find out while the client says nothing.
	closed := make(chan struct{})
	s.all.Go(func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, conn)
		i.src.letGo()
	})
	w := stream.NewWriter(conn)
	for {
		n, err := i.src.Read(w.Buffer())
		if serr := w.Send(n); serr != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			log.G(s.ctx).WithError(err).Debug("stdin ended early")
			return
		}
	}
	if err := w.Close(); err != nil {
		log.G(s.ctx).WithError(err).Debug("end of stdin not sent")
		return
	}
	// Closing right behind the end could reset the connection before the guest
	// has read everything: the guest closes first.
	<-closed
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

// sink writes to a stream's destination.
type sink struct {
	*end
	failed func(error)
	broken bool
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.dst.Write(p)
	s.written.Add(int64(n))
	if !s.dst.keepOn {
		return n, err
	}
	if err != nil && !s.broken {
		s.failed(err)
	}
	s.broken = err != nil
	return len(p), nil
}

// CloseStdin lets stdin end when its last writer has closed it.
func (s *IO) CloseStdin() {
	if s.stdin != nil {
		s.stdin.src.letEnd()
	}
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
		for _, e := range s.outputs() {
			_ = e.dst.Close()
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
