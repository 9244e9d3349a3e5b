//go:build !linux

package sockets

import (
	"context"
	"net"
	"os"
	"path/filepath"
)

func openDir(path string) (*os.File, error) { return os.Open(path) }

func (s socket) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(s.dir.Name(), s.name))
}
