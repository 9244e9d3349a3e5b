// Package unixsocket has what servers of unix sockets share.
package unixsocket

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// What is in the way of a new socket.
var (
	ErrNotSocket = errors.New("there is a file that is no socket")
	ErrServed    = errors.New("another program serves a socket there")
)

// dialTimeout bounds the question whether somebody serves a socket.
const dialTimeout = 2 * time.Second

// RemoveStale removes the socket at path if nobody serves it any more: only a refused
// connection says so, for a server may be too busy to answer. It is no error if nothing is
// there; anything else that is stays, and is ErrNotSocket or ErrServed.
func RemoveStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return ErrNotSocket
	}
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return ErrServed
	}
	return os.Remove(path)
}
