// Package livefiles follows files of the host that a container has copies of, so that the
// copies follow too: clients write a container's /etc/hosts while it runs.
package livefiles

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/log"
	"github.com/fsnotify/fsnotify"
)

const (
	// quiet is how long nothing must have happened to a file before it is read: who
	// writes one empties it first.
	quiet = 20 * time.Millisecond
	// longest bounds that wait, for a file that is written all the time.
	longest = 500 * time.Millisecond
	// poll is how often files are looked at that cannot be watched: a user has 128 watchers
	// on most hosts (inotify(7), max_user_instances).
	poll = 2 * time.Second
)

// Follow calls changed with the path of each of the files once, and again whenever it may
// have changed: it was written, replaced, or a symbolic link that leads to it was. It
// returns when ctx ends.
func Follow(ctx context.Context, files []string, changed func(path string)) {
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = w.Close() }()
		err = watch(ctx, w, files, changed)
	}
	if err == nil {
		return
	}
	for ctx.Err() == nil {
		for _, path := range files {
			changed(path)
		}
		select {
		case <-ctx.Done():
		case <-time.After(poll):
		}
	}
}

// watch is Follow with a watcher. It returns an error if that cannot watch the files.
func watch(ctx context.Context, w *fsnotify.Watcher, files []string, changed func(path string)) error {
	f := follower{watcher: w, real: map[string]string{}}
	for _, path := range files {
		if err := f.find(path); err != nil {
			return err
		}
	}
	// What has changed before they were watched.
	for _, path := range files {
		changed(path)
	}
	var (
		pending []string
		since   time.Time // of the first that is pending
		settled <-chan time.Time
	)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors: // events were lost
			log.G(ctx).WithError(err).Debug("changes of files may have been missed")
			pending, settled = slices.Clone(files), time.After(quiet)
		case e := <-w.Events:
			for _, path := range files {
				if e.Name != path && e.Name != f.real[path] {
					continue
				}
				if len(pending) == 0 {
					since = time.Now()
				}
				if !slices.Contains(pending, path) {
					pending = append(pending, path)
				}
				settled = time.After(min(quiet, max(0, longest-time.Since(since))))
			}
		case <-settled:
			for _, path := range pending {
				// Links may lead elsewhere now. One that is gone may come back.
				_ = f.find(path)
				changed(path)
			}
			pending, settled = nil, nil
		}
	}
}

// follower knows where files really are.
type follower struct {
	watcher *fsnotify.Watcher
	real    map[string]string
}

// find watches the directories that decide which file path is. A watch of the file itself
// would miss the one that replaces it.
func (f *follower) find(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = path
	}
	f.real[path] = real
	for _, p := range []string{path, real} {
		if err := f.watcher.Add(filepath.Dir(p)); err != nil {
			return err
		}
	}
	return nil
}
