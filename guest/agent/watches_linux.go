package agent

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

const (
	// watchesPeriod is how often it is looked which files processes watch, at the most. The
	// kernel has nothing that tells of a new watch.
	watchesPeriod = time.Second
	// watchesShare is the part of one processor's time that the looking may take.
	watchesShare = 0.01
	// watchesSoon is when it is looked again after something has appeared: who sees a new
	// directory will watch it.
	watchesSoon = 100 * time.Millisecond
)

// waitWatches answers as soon as the digest of the files that are watched is not known, with their
// numbers or with paths.
func (c *container) waitWatches(ctx context.Context, known string, paths bool) (*guestv1.WaitWatchesResponse, error) {
	devices, mounts := map[uint64]string{}, map[string]string{}
	c.sharesMu.RLock()
	for _, s := range c.shares {
		devices[s.device], mounts[s.tag] = s.tag, s.path
	}
	c.sharesMu.RUnlock()
	for {
		started := time.Now()
		files, err := watchedFiles("/proc", devices, c.watches.isOwn)
		if err != nil {
			return nil, fmt.Errorf("look which files are watched: %w", err)
		}
		var r *guestv1.WaitWatchesResponse
		if paths {
			c.sharesMu.RLock() // they are not unmounted meanwhile
			r, err = c.watches.response(files, mounts)
			c.sharesMu.RUnlock()
		} else {
			r, err = watchesResponse(files)
		}
		if err != nil || r.Digest != known {
			return r, err
		}
		pause := max(watchesPeriod, time.Duration(float64(time.Since(started))/watchesShare))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.appeared:
			time.Sleep(watchesSoon)
		case <-time.After(pause):
		}
	}
}

// watchesResponse is the answer that names these files, by their shares' tags.
func watchesResponse(files map[string]map[uint64]bool) (r *guestv1.WaitWatchesResponse, err error) {
	r = &guestv1.WaitWatchesResponse{}
	left := api.MaxWatches
	for _, tag := range slices.Sorted(maps.Keys(files)) {
		list := slices.Sorted(maps.Keys(files[tag]))
		if len(list) > left {
			list, r.Cut = list[:left], true
		}
		left -= len(list)
		r.Shares = append(r.Shares, &guestv1.WatchedFiles{Share: tag, Files: list})
	}
	r.Digest, err = digestOf(r)
	return r, err
}

// watchedFiles lists the files that processes watch, by the tags of the file systems that
// they are on, which the kernel's device numbers tell. Instances of inotify for whose link in proc
// except is true do not count.
func watchedFiles(proc string, devices map[uint64]string, except func(link string) bool) (map[string]map[uint64]bool, error) {
	list, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	files := map[string]map[uint64]bool{}
	for _, e := range list {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		// Of a process that has ended meanwhile nothing is left to read.
		dir := filepath.Join(proc, e.Name())
		fds, _ := os.ReadDir(dir + "/fd")
		for _, fd := range fds {
			link := filepath.Join(dir, "fd", fd.Name())
			if to, err := os.Readlink(link); err != nil || to != "anon_inode:inotify" || except(link) {
				continue
			}
			f, err := os.Open(filepath.Join(dir, "fdinfo", fd.Name()))
			if err != nil {
				continue
			}
			readWatches(f, func(device, node uint64) {
				tag, ok := devices[device]
				if !ok {
					return
				}
				if files[tag] == nil {
					files[tag] = map[uint64]bool{}
				}
				files[tag][node] = true
			})
			_ = f.Close()
		}
	}
	return files, nil
}

// handleType is that of FUSE's file handles: the node ID, high word first, and its
// generation, words in the machine's byte order (fuse_encode_fh of fs/fuse/inode.c).
const handleType = 0x81

// readWatches reads what the kernel tells of an inotify instance (proc.rst, 3.8
// "/proc/<pid>/fdinfo/<fd>") and calls found with each file's device and node ID.
func readWatches(r io.Reader, found func(device, node uint64)) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		var device, kind uint64
		var handle []byte
		fields := strings.Fields(s.Text())
		if len(fields) == 0 || fields[0] != "inotify" {
			continue
		}
		for _, f := range fields {
			key, value, _ := strings.Cut(f, ":")
			switch key {
			case "sdev":
				d, _ := strconv.ParseUint(value, 16, 64)
				device = unix.Mkdev(uint32(d>>20), uint32(d&(1<<20-1))) // include/linux/kdev_t.h
			case "fhandle-type":
				kind, _ = strconv.ParseUint(value, 16, 64)
			case "f_handle":
				handle, _ = hex.DecodeString(value)
			}
		}
		if kind == handleType && len(handle) == 12 {
			found(device, uint64(binary.NativeEndian.Uint32(handle))<<32|uint64(binary.NativeEndian.Uint32(handle[4:])))
		}
	}
}

// nodeHandle is the file handle of a FUSE file system's node. Generations are not used.
func nodeHandle(node uint64) unix.FileHandle {
	var b []byte
	b = binary.NativeEndian.AppendUint32(b, uint32(node>>32))
	b = binary.NativeEndian.AppendUint32(b, uint32(node))
	return unix.NewFileHandle(handleType, binary.NativeEndian.AppendUint32(b, 0))
}
