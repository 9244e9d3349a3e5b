// Package tcp is what the bench's network rows measure: a server that takes, sends or
// echoes bytes, and its client. A connection begins with one byte and a length (64 bits,
// big-endian): 's' takes so many bytes and answers with one, 'r' sends so many, 'e'
// sends back what comes.
package tcp

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"time"
)

// Port is the server's.
const Port = "9000"

// packet is the size of what is echoed, in bytes.
const packet = 64

// timeout bounds one connection of the client's.
const timeout = 2 * time.Minute

// Serve serves connections until accepting fails.
func Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go serve(c)
	}
}

func serve(c net.Conn) {
	defer c.Close()
	var head [9]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return
	}
	n := int64(binary.BigEndian.Uint64(head[1:]))
	buf := make([]byte, 256<<10)
	switch head[0] {
	case 's':
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(c, n), buf); err == nil {
			_, _ = c.Write(buf[:1])
		}
	case 'r':
		_ = write(c, n, buf)
	case 'e':
		_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, buf)
	}
}

func write(c net.Conn, n int64, buf []byte) error {
	for n > 0 {
		k, err := c.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// Begin says what is wanted of the server at the other end.
func Begin(c net.Conn, op byte, n int64) error {
	_ = c.SetDeadline(time.Now().Add(timeout))
	_, err := c.Write(binary.BigEndian.AppendUint64([]byte{op}, uint64(n)))
	return err
}

// Transfer times n bytes to ('s') or from ('r') the server.
func Transfer(c net.Conn, op byte, n int64) (time.Duration, error) {
	if err := Begin(c, op, n); err != nil {
		return 0, err
	}
	begin := time.Now()
	buf := make([]byte, 256<<10)
	var err error
	if op == 's' {
		if err = write(c, n, buf); err == nil {
			_, err = io.ReadFull(c, buf[:1])
		}
	} else {
		var got int64
		got, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(c, n), buf)
		if err == nil && got < n {
			err = io.ErrUnexpectedEOF
		}
	}
	return time.Since(begin), err
}

// RoundTrip returns the median time of so many echoes.
func RoundTrip(c net.Conn, rounds int) (time.Duration, error) {
	if err := Begin(c, 'e', 0); err != nil {
		return 0, err
	}
	var out []time.Duration
	buf := make([]byte, packet)
	for range rounds {
		begin := time.Now()
		if _, err := c.Write(buf); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return 0, err
		}
		out = append(out, time.Since(begin))
	}
	slices.Sort(out)
	return out[len(out)/2], nil
}
