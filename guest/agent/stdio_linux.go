package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/stream"
)

// stdioNames are the stdio of a process as a request gives them: names of
// streams, or nothing for /dev/null.
type stdioNames struct {
	terminal              bool
	stdin, stdout, stderr string
}

// stdio joins a process's pipes or pseudoterminal to streams of the host.
type stdio struct {
	terminal bool
	// Connections to the host, nil where the client wants none.
	in, out, err net.Conn

	// Ends of pipes. The child's are closed once it runs.
	child          []*os.File
	inW, outR, erR *os.File
	// Of a terminal: where libcontainer sends it, and its master once it has.
	consoleRecv *os.File
	master      *os.File

	closing atomic.Bool // CloseIO was called
	ended   atomic.Bool // the process has ended
	inOnce  sync.Once
}

// streamTimeout bounds the dialing of one stream.
const streamTimeout = 10 * time.Second

// closeIdle is how long after CloseIO, and after the last byte, stdin stays
// open for what the host had sent before. The host ends the stream itself in the
// ordinary course, this is for one that does not.
const closeIdle = 250 * time.Millisecond

// openStdio dials a process's streams.
func openStdio(ctx context.Context, dial func(context.Context) (net.Conn, error), n stdioNames) (_ *stdio, err error) {
	if n.terminal && n.stderr != "" {
		return nil, invalid("a terminal has no stderr stream")
	}
	s := &stdio{terminal: n.terminal}
	defer func() {
		if err != nil {
			s.abort()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	var g errgroup.Group
	for _, c := range []struct {
		what, name string
		conn       *net.Conn
	}{{"stdin", n.stdin, &s.in}, {"stdout", n.stdout, &s.out}, {"stderr", n.stderr, &s.err}} {
		if c.name == "" {
			continue
		}
		token, err := stream.ParseToken(c.name)
		if err != nil {
			return nil, errors.Join(invalid("%s: %w", c.what, err), g.Wait())
		}
		g.Go(func() error {
			conn, err := dial(ctx)
			if err != nil {
				return fmt.Errorf("%s: connect to the host: %w", c.what, err)
			}
			*c.conn = conn
			deadline, _ := ctx.Deadline()
			_ = conn.SetWriteDeadline(deadline)
			if _, err := conn.Write(token[:]); err != nil {
				return fmt.Errorf("%s: %w", c.what, err)
			}
			return conn.SetWriteDeadline(time.Time{})
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return s, nil
}

// attach makes the pipes or the console socket of a process that is about to
// start, in a user namespace if ids is not nil: its root must own the pipes.
func (s *stdio) attach(p *libcontainer.Process, ids *idmap) error {
	if s.terminal {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socketpair", err)
		}
		s.consoleRecv = os.NewFile(uintptr(fds[0]), "console")
		p.ConsoleSocket = os.NewFile(uintptr(fds[1]), "console")
		s.child = append(s.child, p.ConsoleSocket)
		return nil
	}
	pipe := func() (r, w *os.File, err error) {
		if r, w, err = os.Pipe(); err != nil {
			return nil, nil, err
		}
		widen(w)
		if ids != nil {
			uid, gid := ids.of(0, 0)
			if err := r.Chown(uid, gid); err != nil { // both ends are one inode
				return nil, nil, errors.Join(err, r.Close(), w.Close())
			}
		}
		return r, w, nil
	}
	if s.in != nil {
		r, w, err := pipe()
		if err != nil {
			return err
		}
		p.Stdin, s.inW = r, w
		s.child = append(s.child, r)
	}
	if s.out != nil {
		r, w, err := pipe()
		if err != nil {
			return err
		}
		p.Stdout, s.outR = w, r
		s.child = append(s.child, w)
	}
	if s.err != nil {
		r, w, err := pipe()
		if err != nil {
			return err
		}
		p.Stderr, s.erR = w, r
		s.child = append(s.child, w)
	}
	return nil
}

// started is called once the process exists and holds its ends.
func (s *stdio) started() error {
	s.closeChild()
	if s.terminal {
		m, err := receiveFile(s.consoleRecv)
		_ = s.consoleRecv.Close()
		if err != nil {
			return fmt.Errorf("receive the terminal: %w", err)
		}
		s.master = m
		s.outR = m
		s.inW = m
	}
	if s.outR != nil {
		go s.copyOut(s.outR, s.out)
	}
	if s.erR != nil {
		go s.copyOut(s.erR, s.err)
	}
	if s.inW != nil && s.in != nil {
		go s.copyIn()
	}
	return nil
}

// copyOut carries a process's output to the host until everybody in the guest
// has closed it, and then says so; when the process has ended it marks the place.
//
// A host that has gone away closes the pipe, as it would for runc: whoever writes
// on gets a SIGPIPE. A terminal has no such signal but the hangup, which is too
// much: its output is read and thrown away.
func (s *stdio) copyOut(r *os.File, conn net.Conn) {
	defer r.Close()
	o := &outStream{r: r, terminal: s.terminal, w: stream.NewWriter(io.Discard)}
	if conn != nil {
		defer conn.Close()
		o.w = stream.NewWriter(conn)
	}
	var pace pace
	for {
		n, err := r.Read(o.w.Buffer())
		if serr := o.send(n); serr != nil {
			return
		}
		if err == nil {
			pace.wait(n)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && s.ended.Load() {
			_ = r.SetReadDeadline(time.Time{})
			err = o.sendRest()
		}
		if err != nil { // io.EOF; EIO from a terminal
			_ = o.w.Close()
			return
		}
	}
}

// pipeSize is the size of a process's pipes in bytes, four times the kernel's own
// choice: so much can be written before somebody has to run who reads it, which on
// one emulated processor is what costs most.
const pipeSize = 256 << 10

// widen gives a pipe its size. It works without.

func widen(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}

// pace holds a reader back whose writer writes little and often: each of its writes
// would cost a wake-up and a packet. What is written once, and what is typed, is
// passed on at once.
type pace struct {
	last time.Time
	runs int // short reads that followed each other closely
}

// Of a pace: what is a short read in bytes, closely, and often; and how long the
// writer is left alone then.
const (
	shortRead = 32 << 10
	closely   = 2 * time.Millisecond
	often     = 8
	gather    = time.Millisecond
)

// wait is called after a read of n bytes.
func (p *pace) wait(n int) {
	now := time.Now()
	if n >= shortRead || now.Sub(p.last) > closely {
		p.runs = 0
	} else if p.runs++; p.runs >= often {
		time.Sleep(gather)
		now = time.Now()
	}
	p.last = now
}

// outStream is one output stream of a process.
type outStream struct {
	r        *os.File
	w        *stream.Writer
	terminal bool
	gone     bool // the host takes no more
}

// send sends n bytes of the writer's buffer.
func (o *outStream) send(n int) error {
	if o.gone {
		return nil
	}
	err := o.w.Send(n)
	if err != nil && o.terminal {
		o.gone, err = true, nil
	}
	return err
}

// sendRest sends what an ended process has left in its pipe, and then the mark. It
// does not wait for others, who may hold the pipe for ever.
func (o *outStream) sendRest() error {
	for left := maxPipe; left > 0; {
		n, err := readNow(o.r, o.w.Buffer())
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err == nil {
			err = o.send(n)
		}
		if err != nil {
			return err
		}
		left -= n
	}
	if o.gone {
		return nil
	}
	_ = o.w.Mark() // a host that has gone away is noticed with the next bytes
	return nil
}

// maxPipe is more than a pipe or a terminal can hold, in bytes.
const maxPipe = 1 << 20

// readNow reads what is there; EAGAIN if there is nothing.
func readNow(f *os.File, p []byte) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	rerr := raw.Read(func(fd uintptr) bool {
		for {
			if n, err = unix.Read(int(fd), p); !errors.Is(err, unix.EINTR) {
				return true
			}
		}
	})
	switch {
	case rerr != nil:
		return 0, rerr
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// exited is called when the process has ended: what it has written is marked off
// from what others go on to write.
func (s *stdio) exited() {
	s.ended.Store(true)
	for _, r := range []*os.File{s.outR, s.erR} {
		if r != nil {
			_ = r.SetReadDeadline(time.Now()) // interrupts the read
		}
	}
}

// copyIn carries the host's input to the process, until the host's end or until
// the process has closed its stdin or is gone.
func (s *stdio) copyIn() {
	defer s.closeIn()
	_, _ = stream.NewReader(s.in).WriteTo(inWriter{s})
}

// inWriter writes to the process's stdin. After CloseIO each of its writes gives
// the host more time.
type inWriter struct{ *stdio }

func (w inWriter) Write(p []byte) (int, error) {
	n, err := w.inW.Write(p)
	if w.closing.Load() {
		_ = w.in.SetReadDeadline(time.Now().Add(closeIdle))
	}
	return n, err
}

// closeIn ends the process's stdin. A terminal stays open, as it would for
// runc: it has no end of input.
func (s *stdio) closeIn() {
	s.inOnce.Do(func() {
		if s.in != nil {
			_ = s.in.Close()
		}
		if s.inW != nil && !s.terminal {
			_ = s.inW.Close()
		}
	})
}

// closeInput ends stdin after what the host has sent so far.
func (s *stdio) closeInput() {
	if s.in == nil || s.terminal {
		return
	}
	s.closing.Store(true)
	_ = s.in.SetReadDeadline(time.Now().Add(closeIdle))
}

// resize sets the size of the terminal.
func (s *stdio) resize(width, height uint16) error {
	raw, err := s.master.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	if err := raw.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	}); err != nil {
		return err
	}
	return ierr
}

// abort gives everything up: the process was not started. The host sees its
// streams end.
func (s *stdio) abort() {
	s.closeChild()
	for _, c := range []net.Conn{s.out, s.err} {
		if c != nil {
			_ = c.SetWriteDeadline(time.Now().Add(time.Second))
			_ = stream.NewWriter(c).Close()
			_ = c.Close()
		}
	}
	s.closeIn()
	for _, f := range []*os.File{s.outR, s.erR, s.consoleRecv} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (s *stdio) closeChild() {
	for _, f := range s.child {
		_ = f.Close()
	}
	s.child = nil
}

// receiveFile takes the file descriptor that has been sent over a unix socket
// already. The file does not block the thread that reads it.
func receiveFile(sock *os.File) (*os.File, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(int(sock.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 {
		return nil, errors.New("the message carries no file")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
