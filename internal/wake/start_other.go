//go:build !cgo || !(darwin || macsim)

package wake

import "github.com/containerd/errdefs"

func start(func()) error { return errdefs.ErrNotImplemented }
