package vz

import (
	"errors"
	"fmt"
)

// What the real package returns on a macOS that lacks something.
var (
	ErrUnsupportedOSVersion = errors.New("unsupported macOS version")
	ErrBuildTargetOSVersion = errors.New("unsupported build target macOS version")
)

// NSError is an error of the framework.
type NSError struct {
	Domain               string
	Code                 int
	LocalizedDescription string
	UserInfo             string
}

func (n *NSError) Error() string {
	if n == nil {
		return "<nil>"
	}
	return fmt.Sprintf("Error Domain=%s Code=%d Description=%q UserInfo=%s", n.Domain, n.Code, n.LocalizedDescription, n.UserInfo)
}
