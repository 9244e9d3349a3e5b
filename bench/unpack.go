package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/applevm/applevm/e2e/images"
)

// The ways to unpack a layer, by the ends of their rows' names. Each way is a
// process of its own, so that its CPU time can be told.
const (
	wayLimit     = "limit"     // decompress, hash, write the tar to a file: no image at all
	wayOurs      = "applevm"   // differ.Convert
	wayTar2ext4  = "tar2ext4"  // hcsshim's converter
	wayOverlayfs = "overlayfs" // containerd's applier, to a directory
	wayErofs     = "erofs"     // what containerd's erofs differ does, by mkfs.erofs
)

// unpackRow names the row of one measure of a layer.
func unpackRow(layer, measure string) string { return "unpack/" + layer + "/" + measure }

// cpuRow names the row of the CPU time that one way takes.
func cpuRow(layer, way string) string {
	if way == wayOurs {
		return unpackRow(layer, "cpu")
	}
	return unpackRow(layer, "cpu-"+way)
}

// unpackGroups measures what it takes to unpack a layer: two sizes of a Debian
// root's tar, each as gzip and as zstd.
func unpackGroups() []group {
	var groups []group
	for _, size := range []struct {
		name   string
		tar    func(context.Context) (string, error)
		rounds int // at most; one of the large layer takes half a minute
	}{{"100mb", images.DebianLayer, 15}, {"500mb", images.DebianLarge, 5}} {
		for _, form := range []struct {
			name     string
			compress func(context.Context, string) (string, error)
		}{{"gzip", images.Gzip}, {"zstd", images.Zstd}} {
			layer := size.name + "-" + form.name
			groups = append(groups, group{
				rows: []string{cpuRow(layer, wayLimit), cpuRow(layer, wayOurs), cpuRow(layer, wayTar2ext4), cpuRow(layer, wayOverlayfs),
					cpuRow(layer, wayErofs), unpackRow(layer, "wall"), unpackRow(layer, "peak-rss")},
				run: func(ctx context.Context, e *env) error {
					tar, err := size.tar(ctx)
					if err != nil {
						return err
					}
					blob, err := form.compress(ctx, tar)
					if err != nil {
						return err
					}
					return runUnpack(ctx, e, layer, blob, min(e.runs, size.rounds))
				},
			})
		}
	}
	return groups
}

// unpackTimes are the medians' input of one way.
type unpackTimes struct {
	cpu, wall, rss []float64
}

func runUnpack(ctx context.Context, e *env, layer, blob string, rounds int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "unpack")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ways, missing, err := unpackWays(ctx, dir)
	if err != nil {
		return err
	}
	if err := readAll(blob); err != nil { // into the page cache
		return err
	}
	times := make(map[string]*unpackTimes)
	for _, w := range ways {
		times[w.name] = &unpackTimes{}
	}
	diffID := ""
	for range rounds {
		// Interleaved, so that the machine's noise hits all ways alike.
		for _, w := range ways {
			got, m, err := unpackOnce(ctx, w, blob, dir)
			if err != nil {
				return err
			}
			// All of them must have read the same, and all of it.
			if diffID == "" {
				diffID = got.DiffID
			}
			if got.DiffID != diffID {
				return fmt.Errorf("%s unpacked %s as %s, %s as %s", w.name, blob, got.DiffID, ways[0].name, diffID)
			}
			t := times[w.name]
			t.cpu, t.wall, t.rss = append(t.cpu, m.CPU), append(t.wall, m.Wall), append(t.rss, got.PeakRSS)
		}
	}
	reportUnpack(e.report, layer, times, missing)
	return nil
}

func reportUnpack(r *report, layer string, times map[string]*unpackTimes, missing map[string]error) {
	limit, ours := times[wayLimit], times[wayOurs]
	base, against := median(limit.cpu), cpuRow(layer, wayLimit)
	r.add(against, base, "s")
	r.ratioAtMost(cpuRow(layer, wayOurs), median(ours.cpu), "s", against, base, 1.15)
	for _, way := range []string{wayTar2ext4, wayOverlayfs, wayErofs} {
		if t := times[way]; t != nil {
			r.beside(cpuRow(layer, way), median(t.cpu), "s", against, base)
		} else {
			r.leftOut(cpuRow(layer, way), missing[way].Error())
		}
	}
	r.beside(unpackRow(layer, "wall"), median(ours.wall), "s", "the limit's", median(limit.wall))
	r.beside(unpackRow(layer, "peak-rss"), median(ours.rss), "MiB", "the limit's", median(limit.rss))
}

// A way unpacks a layer.
type way struct {
	name string
	// argv is followed by the blob and the directory or file to write.
	argv []string
	// toDir tells that the layer becomes a directory, which needs a file system.
	toDir bool
}

// unpackWays returns the ways, the limit first, and why others are missing. It may
// leave files in dir.
func unpackWays(ctx context.Context, dir string) (ways []way, missing map[string]error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	tar2ext4, err := filepath.Abs(filepath.Join("bin", "tar2ext4"))
	if err != nil {
		return nil, nil, err
	}
	if _, err := os.Stat(tar2ext4); err != nil {
		return nil, nil, fmt.Errorf("%w: run make bench-tools", err)
	}
	mkfs, err := images.MkfsErofs(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	ways = []way{
		{name: wayLimit, argv: []string{self, unpackArg, wayLimit}},
		{name: wayOurs, argv: []string{self, unpackArg, wayOurs}},
		{name: wayTar2ext4, argv: []string{tar2ext4}},
		{name: wayErofs, argv: append([]string{self, unpackArg, wayErofs}, mkfs...)},
	}
	probe := freshFS{filepath.Join(dir, "probe")}
	if err := os.Mkdir(probe.dir, 0o700); err != nil {
		return nil, nil, err
	}
	if err := probe.probe(ctx); err != nil {
		return ways, map[string]error{wayOverlayfs: err}, nil
	}
	return append(ways, way{name: wayOverlayfs, argv: []string{self, unpackArg, wayOverlayfs}, toDir: true}), nil, nil
}

// unpackOnce runs one way and removes what it wrote.
func unpackOnce(ctx context.Context, w way, blob, dir string) (got unpacked, _ measurement, retErr error) {
	self, err := os.Executable()
	if err != nil {
		return got, measurement{}, err
	}
	run, err := os.MkdirTemp(dir, "run")
	if err != nil {
		return got, measurement{}, err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(run)) }()
	var argv []string
	out := filepath.Join(run, "out")
	if w.toDir {
		fresh := freshFS{run}
		if err := fresh.create(ctx); err != nil {
			return got, measurement{}, err
		}
		argv, out = fresh.command(), filepath.Join(fresh.mount(), "out")
	}
	m, err := measure(ctx, slices.Concat(argv, []string{self, measuredArg}, w.argv, []string{blob, out}), &got)
	return got, m, err
}

func readAll(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, struct{ io.Reader }{f})
	return err
}
