package main

import (
	"os"
	"syscall"
)

// openTTY opens the client's side of a pseudo-terminal for everybody: the client
// may run as another user.
func openTTY(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o666); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
