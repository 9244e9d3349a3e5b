package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/snapshotter"
	"github.com/applevm/applevm/snapshotter/differ"
)

const (
	snapshotOthers = 900
	snapshotSample = 100
	// snapshotFlat is how much longer an operation may take beside 900 others.
	snapshotFlat = 1.5
)

var snapshotsGroup = group{
	rows: []string{"snapshots/prepare-beside-0", "snapshots/prepare-beside-900", "snapshots/remove-beside-0", "snapshots/remove-beside-900"},
	run:  runSnapshots,
}

// runSnapshots prepares 1,000 containers' snapshots on one image and removes them.
// It compares the operations of the last 100, which have 900 others beside them,
// with those of 100 that are alone: in another root, turn by turn, so that the
// disk's noise hits both alike.
func runSnapshots(ctx context.Context, e *env) (retErr error) {
	dir, err := os.MkdirTemp("", "snapshots")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	open := func(name string) (*snapshotter.Snapshotter, error) {
		sn, err := snapshotter.New(ctx, filepath.Join(dir, name), snapshotter.Options{WritableSize: writableSize})
		if err != nil {
			return nil, err
		}
		if err := addDebian(ctx, sn); err != nil {
			return nil, errors.Join(err, sn.Close())
		}
		return sn, nil
	}
	few, err := open("few")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, few.Close()) }()
	many, err := open("many")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, many.Close()) }()

	prepare := func(sn *snapshotter.Snapshotter, i int) error {
		_, err := sn.Prepare(ctx, fmt.Sprint("c", i), debianSnapshot)
		return err
	}
	remove := func(sn *snapshotter.Snapshotter, i int) error { return sn.Remove(ctx, fmt.Sprint("c", i)) }
	for i := range snapshotOthers {
		if err := prepare(many, i); err != nil {
			return err
		}
	}
	for _, op := range []struct {
		name string
		do   func(sn *snapshotter.Snapshotter, i int) error
	}{{"snapshots/prepare", prepare}, {"snapshots/remove", remove}} {
		var alone, beside []float64
		for i := range snapshotSample {
			for _, in := range []struct {
				sn   *snapshotter.Snapshotter
				took *[]float64
			}{{few, &alone}, {many, &beside}} {
				start := time.Now()
				if err := op.do(in.sn, snapshotOthers+i); err != nil {
					return err
				}
				*in.took = append(*in.took, float64(time.Since(start))/1e6)
			}
		}
		base := median(alone)
		e.report.add(op.name+"-beside-0", base, "ms")
		e.report.ratioAtMost(op.name+"-beside-900", median(beside), "ms", op.name+"-beside-0", base, snapshotFlat)
	}
	for i := range snapshotOthers {
		if err := remove(many, i); err != nil {
			return err
		}
	}
	return nil
}

// debianSnapshot is the name of the snapshot that addDebian makes.
const debianSnapshot = "debian"

// addDebian gives sn a committed snapshot with the layer of Debian's image.
func addDebian(ctx context.Context, sn *snapshotter.Snapshotter) error {
	tar, err := images.DebianLayer(ctx)
	if err != nil {
		return err
	}
	blob, err := images.Zstd(ctx, tar)
	if err != nil {
		return err
	}
	const key = "extract-1-" + debianSnapshot // an unpacker's form of key
	mounts, err := sn.Prepare(ctx, key, "")
	if err != nil {
		return err
	}
	err = sn.AddLayer(ctx, mounts, func(f *os.File) (digest.Digest, error) {
		ra, err := local.OpenReader(blob)
		if err != nil {
			return "", err
		}
		defer ra.Close()
		res, err := differ.Convert(ctx, mediaType(blob), content.NewReader(ra), f, differ.ConvertOptions{DiffIDKnown: true})
		return res.DiffID, err
	})
	if err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(blob), err)
	}
	return sn.Commit(ctx, debianSnapshot, key)
}
