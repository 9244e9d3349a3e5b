//go:build !linux

package main

import (
	"context"
	"errors"
)

type process struct {
	pid  int
	name string
}

// processes finds nothing: this system has no /proc.
func (s *site) processes() ([]process, error) { return nil, nil }

// watch refuses: a stress that nobody measures would say nothing of growth.
func (s *site) watch(context.Context) (func() []sample, error) {
	return nil, errors.New("what a run takes can be measured on Linux alone: use -stress 0")
}
