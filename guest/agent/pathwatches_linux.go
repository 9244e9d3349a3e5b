package agent

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/internal/inotify"
	"github.com/applevm/applevm/internal/recent"
)

const (
	// ownFor is for how long, at the least, it is remembered what the container has changed itself: the
	// host tells of it soon, but not if it has no processor.
	ownFor = 10 * time.Second
	// ownWithin is how much later than the agent saw it, by the share's clock or the agent's, a change of
	// the container's own may be.
	ownWithin = time.Second
	// ownGoneFor is for how long a file's absence is taken for the container's doing: nothing tells
	// when it went.
	ownGoneFor = 5 * time.Second
	// maxOwn bounds what is remembered.
	maxOwn = 64 << 10
	// pathsFor is how long paths are taken to be right while the watches stay the same. Directories may be
	// renamed.
	pathsFor = 10 * time.Second
	// ownEvents are what tells of a container's own changes. Of attributes the host does not tell, and
	// the agent itself changes them.
	ownEvents = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
)

// pathWatches are the files of shares that a container's processes watch, by their paths, where somebody
// else than the shim serves the shares: the host knows files by paths alone then. The agent watches the
// same files, to know what the container does to them itself.
type pathWatches struct {
	mu     sync.Mutex
	notify *inotify.Instance // nil until something is watched
	closed bool
	digest string // of the nodes that were looked up last
	looked time.Time
	paths  map[watchedNode]string
	wds    map[watchedNode]int32
	nodes  map[int32]watchedNode
	// touched is when the container has last changed what is at a place.
	touched recent.Memory[sharePlace, time.Time]
}

// watchedNode is a file of a share, by the share's tag and the FUSE protocol's node ID.
type watchedNode struct {
	tag  string
	node uint64
}

// sharePlace is a path in a share.
type sharePlace struct{ tag, path string }

func newPathWatches() *pathWatches {
	return &pathWatches{
		paths: map[watchedNode]string{}, wds: map[watchedNode]int32{}, nodes: map[int32]watchedNode{},
		touched: recent.Memory[sharePlace, time.Time]{For: ownFor, Max: maxOwn},
	}
}

// isOwn tells whether a link in /proc, such as /proc/1/fd/7, is the agent's own instance of inotify.
func (w *pathWatches) isOwn(link string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.notify != nil && link == fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), w.notify.FD())
}

// response is watchesResponse with paths. mounts are the shares' mount points by their tags.
func (w *pathWatches) response(files map[string]map[uint64]bool, mounts map[string]string) (*guestv1.WaitWatchesResponse, error) {
	byNode, err := watchesResponse(files)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, errors.New("the container is gone")
	}
	if byNode.Digest != w.digest || time.Since(w.looked) > pathsFor {
		if err := w.look(byNode, mounts); err != nil {
			return nil, err
		}
		w.digest, w.looked = byNode.Digest, time.Now()
	}
	r := &guestv1.WaitWatchesResponse{Cut: byNode.Cut}
	left := api.MaxWatchedPaths
	for _, s := range byNode.Shares {
		var list []string
		for _, node := range s.Files {
			if p, ok := w.paths[watchedNode{s.Share, node}]; ok {
				list = append(list, p)
			}
		}
		slices.Sort(list)
		out := &guestv1.WatchedFiles{Share: s.Share}
		for _, p := range slices.Compact(list) {
			if left -= len(p); left < 0 {
				r.Cut = true
				break
			}
			out.Paths = append(out.Paths, []byte(p))
		}
		r.Shares = append(r.Shares, out)
	}
	r.Digest, err = digestOf(r)
	return r, err
}

// look finds the nodes' paths, and has the agent watch what is new.
func (w *pathWatches) look(r *guestv1.WaitWatchesResponse, mounts map[string]string) error {
	if w.notify == nil {
		if len(r.Shares) == 0 {
			return nil
		}
		n, err := inotify.Open()
		if err != nil {
			return err
		}
		w.notify = n
		go w.listen(n)
	}
	seen := map[watchedNode]bool{}
	for _, s := range r.Shares {
		mount, err := os.Open(mounts[s.Share])
		if err != nil {
			return err
		}
		for _, node := range s.Files {
			n := watchedNode{s.Share, node}
			if err := w.lookAt(n, mount); err != nil {
				_ = mount.Close()
				return err
			}
			seen[n] = true
		}
		_ = mount.Close()
	}
	for n := range maps.Keys(w.paths) {
		if !seen[n] {
			delete(w.paths, n)
		}
	}
	for n, wd := range w.wds {
		if !seen[n] {
			w.notify.Remove(wd)
			delete(w.wds, n)
			delete(w.nodes, wd)
		}
	}
	return nil
}

// lookAt finds one node's path. One that cannot be named now keeps the path that it had.
func (w *pathWatches) lookAt(n watchedNode, mount *os.File) error {
	fd, err := unix.OpenByHandleAt(int(mount.Fd()), nodeHandle(n.node), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return nil //nolint:nilerr // it is gone, or about to be
	}
	defer func() { _ = unix.Close(fd) }()
	if _, ok := w.wds[n]; !ok {
		wd, err := w.notify.Add(fd, ownEvents)
		if err != nil {
			return err
		}
		w.wds[n], w.nodes[wd] = wd, n
	}
	to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	if p, err := filepath.Rel(mount.Name(), to); err == nil && isSharePath(p) && !strings.HasSuffix(to, " (deleted)") {
		w.paths[n] = p
	}
	return nil
}

// isSharePath tells whether p can be a path in a share.
func isSharePath(p string) bool {
	return len(p) < unix.PathMax && filepath.IsLocal(p) && path.Clean(p) == p && !strings.ContainsRune(p, 0)
}

// listen takes events as they come, so that they do not overflow.
func (w *pathWatches) listen(n *inotify.Instance) {
	for n.Wait() == nil {
		w.mu.Lock()
		closed := w.closed
		if !closed {
			w.drain()
		}
		w.mu.Unlock()
		if closed {
			return
		}
	}
}

// drain notes what the container has done so far.
func (w *pathWatches) drain() {
	buf := make([]byte, 16<<10)
	for w.notify != nil {
		list, err := w.notify.TryRead(buf)
		if err != nil || len(list) == 0 {
			return
		}
		for _, e := range list {
			n, ok := w.nodes[e.Watch]
			if !ok {
				continue
			}
			if e.Mask&unix.IN_IGNORED != 0 {
				delete(w.nodes, e.Watch)
				delete(w.wds, n)
				continue
			}
			if p, ok := w.paths[n]; ok {
				w.touched.Set(sharePlace{n.tag, path.Join(p, e.Name)}, time.Now())
			}
		}
	}
}

// isOwnDoing tells whether a place is as the container has made it. stx is what is there now, all
// zero if it is nothing.
func (w *pathWatches) isOwnDoing(p sharePlace, stx *unix.Statx_t) bool {
	w.drain()
	at, ok := w.touched.Get(p)
	if !ok {
		return false
	}
	if stx.Mode == 0 {
		return time.Since(at) < ownGoneFor
	}
	return time.Unix(stx.Ctime.Sec, int64(stx.Ctime.Nsec)).Before(at.Add(ownWithin))
}

// raiseOthers raises events for the nodes that are known by a path, but are not the file that is there now.
func (w *pathWatches) raiseOthers(p sharePlace, ino uint64, mount int) {
	for n, at := range w.paths {
		if n.tag != p.tag || at != p.path {
			continue
		}
		fd, err := unix.OpenByHandleAt(mount, nodeHandle(n.node), unix.O_PATH|unix.O_CLOEXEC)
		if err != nil {
			continue
		}
		if stx, err := freshStat(fd); err == nil && stx.Ino != ino {
			_ = sameMode(fd, stx)
		}
		_ = unix.Close(fd)
	}
}

func (w *pathWatches) close() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.notify != nil && !w.closed {
		w.notify.Close()
		w.notify = nil
	}
	w.closed = true
}
