//go:build !linux

package tapns

import "errors"

var errNone = errors.New("there are no network namespaces on this system: use --net=host or --net=none")

// New fails.
func New(int) (*Namespace, error) { return nil, errNone }

// Open fails.
func Open(string, int) (*Namespace, error) { return nil, errNone }

// Count fails.
func Count(string) (int, error) { return 0, errNone }

// Undo does nothing.
func Undo(string) error { return nil }

// Close does nothing.
func (*Namespace) Close() {}

// Join fails.
func (*Namespace) Join(int) ([]Interface, error) { return nil, errors.ErrUnsupported }
