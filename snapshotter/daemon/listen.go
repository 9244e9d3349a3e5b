package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/internal/unixsocket"
)

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
	err := unixsocket.RemoveStale(path)
	switch {
	case errors.Is(err, unixsocket.ErrNotSocket):
		return fmt.Errorf("%s exists and is not a socket, remove it or choose another address: %w", path, errdefs.ErrUnavailable)
	case errors.Is(err, unixsocket.ErrServed):
		return fmt.Errorf("another process serves %s, stop it or choose another address: %w", path, errdefs.ErrUnavailable)
	}
	return err
}
