package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/docker/go-units"

	"github.com/applevm/applevm/snapshotter/ext4"
)

// volume makes an empty ext4 image that a container can mount as its own disk.
func volume(_ context.Context, c *call) error {
	flags := new(flag.FlagSet)
	label := flags.String("label", "", "the volume's name, at most 16 bytes")
	operands, err := c.parse(flags)
	if err != nil {
		return err
	}
	path := operands[0]
	size, err := units.RAMInBytes(operands[1])
	if err != nil {
		return lineError{fmt.Errorf("volume %s: the size %q is none like 512M or 10G", path, operands[1])}
	}
	if err := makeVolume(path, size, *label); err != nil {
		return lineError{fmt.Errorf("volume %s: %w", path, err)}
	}
	return nil
}

func makeVolume(path string, size int64, label string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	if err := ext4.CreateEmpty(f, size, ext4.EmptyOptions{Label: label, Time: time.Now()}); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
