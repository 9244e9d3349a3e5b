package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/applevm/applevm/internal/filework"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/qemu"
	"github.com/applevm/applevm/vmm/vmmtest"
	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

// virtiofsd is QEMU's file server in C, of the Debian package qemu-system-common; QEMU 8
// has none any more.
const virtiofsd = "/usr/lib/qemu/virtiofsd"

const sharingTag = "share"

var sharingRows = []string{"sharing/create", "sharing/stat", "sharing/read", "sharing/write-256mb", "sharing/read-256mb"}

var sharingGroup = group{rows: sharingRows, run: runSharing}

// runSharing measures the same work on the files of a shared directory: in a guest whose
// files our server serves, in the same guest with QEMU's own file server, and on the host.
// A guest that forgets what it knows asks for all; the host has all in memory.
func runSharing(ctx context.Context, e *env) error {
	if os.Getuid() != 0 {
		for _, r := range sharingRows {
			e.report.leftOut(r, "the server that it is compared with needs root")
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "shr") // short: sockets are in it
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	img, err := vmmtest.BuildImage(ctx, runtime.GOARCH, dir)
	if err != nil {
		return err
	}
	var ours, theirs, native []filework.Times
	for i := range min(e.runs, 3) {
		for _, way := range []struct {
			to     *[]filework.Times
			server func(vmm.Share) (*os.File, error)
		}{{&ours, nil}, {&theirs, func(s vmm.Share) (*os.File, error) { return startVirtiofsd(ctx, dir, s) }}} {
			run := filepath.Join(dir, fmt.Sprint("m", i))
			t, err := sharedWork(ctx, run, vmmtest.ConfigFor(img, run), way.server)
			if err != nil {
				return err
			}
			*way.to = append(*way.to, t)
		}
		t, err := filework.Do(dir, func() error { return nil })
		if err != nil {
			return err
		}
		native = append(native, t)
	}
	for i, of := range []func(filework.Times) float64{
		func(t filework.Times) float64 { return filework.Files / t.Create },
		func(t filework.Times) float64 { return filework.Files / t.Stat },
		func(t filework.Times) float64 { return filework.Files / t.Read },
		func(t filework.Times) float64 { return filework.BigSize / 1e6 / t.Write },
		func(t filework.Times) float64 { return filework.BigSize / 1e6 / t.ReadBig },
	} {
		unit := "files/s"
		if i > 2 {
			unit = "MB/s"
		}
		at := func(all []filework.Times) float64 {
			var v []float64
			for _, t := range all {
				v = append(v, of(t))
			}
			return median(v)
		}
		row := sharingRows[i]
		e.report.beside(row, at(ours), unit, "QEMU's virtiofsd", at(theirs))
		e.report.beside(row+"-virtiofsd", at(theirs), unit, "no machine", at(native))
	}
	return nil
}

// sharedWork has a guest work in a directory that the host shares.
func sharedWork(ctx context.Context, run string, cfg vmm.Config, server func(vmm.Share) (*os.File, error)) (t filework.Times, retErr error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	d, err := qemu.New(qemu.Options{ShareServer: server})
	if err != nil {
		return t, err
	}
	shared := filepath.Join(run, "shared")
	if err := os.MkdirAll(shared, 0o755); err != nil {
		return t, err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(run)) }()
	// So many devices that the machine has PCI: QEMU's virtiofsd knows only transports
	// without a legacy mode.
	disk := filepath.Join(run, "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 1<<20)); err != nil {
		return t, err
	}
	for i := range 8 {
		cfg.Disks = append(cfg.Disks, vmm.Disk{ID: fmt.Sprint("d", i), Path: disk, ReadOnly: true})
	}
	cfg.Memory = 1 << 30
	cfg.Shares = []vmm.Share{{Tag: sharingTag, Path: shared}}
	g, err := vmmtest.StartGuest(ctx, d, cfg)
	if err != nil {
		return t, err
	}
	defer func() { retErr = errors.Join(retErr, g.Kill()) }()
	resp, err := g.Call(ctx, proto.Request{Op: proto.OpFiles, Share: sharingTag})
	return resp.Times, err
}

// startVirtiofsd returns QEMU's end of a connection to a virtiofsd, which ends with the
// connection.
func startVirtiofsd(ctx context.Context, dir string, s vmm.Share) (*os.File, error) {
	socket := filepath.Join(dir, "vfsd")
	defer os.Remove(socket)
	cmd := exec.CommandContext(ctx, virtiofsd, "--socket-path="+socket, "-o", "source="+s.Path, "-o", "cache=auto", "-f")
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("QEMU's virtiofsd: %w: install qemu-system-common of Debian 12", err)
	}
	go func() { _ = cmd.Wait() }()
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			f, err := c.(*net.UnixConn).File()
			return f, errors.Join(err, c.Close())
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("QEMU's virtiofsd does not listen: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
