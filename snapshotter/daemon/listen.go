package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// dialTimeout bounds the question whether somebody serves a socket.
const dialTimeout = 2 * time.Second

// listen makes the unix socket at path, for this user alone, and its directory
// if that does not exist. A socket that nobody serves any more is replaced; one
// that is served, or anything else of that name, is errdefs.ErrUnavailable.
func listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of socket %s: %w", path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// The socket gets its name when its mode is right.
	tmp, err := os.MkdirTemp(dir, ".s")
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "s")
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // that would be the old name
	if err = os.Chmod(name, 0o600); err == nil {
		err = os.Rename(name, path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	return l, nil
}

// removeStale removes the socket at path if nobody serves it.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket, remove it or choose another address: %w", path, errdefs.ErrUnavailable)
	}
	conn, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("another process serves %s, stop it or choose another address: %w", path, errdefs.ErrUnavailable)
	}
	return os.Remove(path)
}
