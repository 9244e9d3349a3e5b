package virtiofs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/internal/inotify"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/internal/settle"
)

const (
	// maxWatched is how many files of the host are watched for one machine.
	maxWatched = 32 << 10
)

const (
	entryEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	fileEvents  = unix.IN_MODIFY | unix.IN_ATTRIB
)

// Watcher sees what others than the guest do to the files of a machine's shares. It is the most of
// a vmm.ShareWatcher.
type Watcher struct {
	devices map[string]*Device

	mu       sync.Mutex
	notify   *inotify.Instance // nil until something is watched
	closed   bool
	watched  map[watched]int32
	watchers map[int32][]watched
	pending  *settle.Queue[place] // with inotify's masks
}

// watched is a file of a share that is watched.
type watched struct {
	tag string
	id  uint64
}

// place is where something changes: a file that is watched, or one in a directory that is.
type place struct {
	watched
	name string
}

// NewWatcher returns a watcher for the shares of one machine, by their tags.
func NewWatcher(devices map[string]*Device) *Watcher {
	return &Watcher{
		devices: devices, watched: map[watched]int32{}, watchers: map[int32][]watched{},
		pending: settle.New[place](),
	}
}

// WatchShares implements vmm.ShareWatcher.
func (w *Watcher) WatchShares(files map[string]vmm.WatchedFiles) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return vmm.ErrNotRunning
	}
	want := map[watched]bool{}
	for tag, d := range w.devices {
		ids := files[tag].Nodes
		d.fs.recent.on.Store(len(ids) > 0)
		for _, id := range d.fs.notCovered(ids) {
			want[watched{tag, id}] = true
		}
	}
	for f := range w.watched {
		if !want[f] {
			w.forget(f)
		}
	}
	if len(want) == 0 {
		return nil
	}
	if w.notify == nil {
		n, err := inotify.Open()
		if err != nil {
			return err
		}
		w.notify = n
		go w.listen(n)
	}
	for f := range want {
		if _, ok := w.watched[f]; ok {
			continue
		}
		if len(w.watched) >= maxWatched {
			return fmt.Errorf("the guest watches more than %d files", maxWatched)
		}
		if err := w.watch(f); err != nil {
			return err
		}
	}
	return nil
}

// notCovered leaves out the files in directories that are among them.
func (fs *fileSystem) notCovered(ids []uint64) []uint64 {
	given := make(map[uint64]bool, len(ids))
	for _, id := range ids {
		given[id] = true
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var out []uint64
	for id := range given {
		n := fs.nodes[id]
		if n != nil && (n.kind == unix.S_IFDIR || n.parent == nil || !given[n.parent.id]) {
			out = append(out, id)
		}
	}
	return out
}

// watch watches one file more. One that is gone is none.
func (w *Watcher) watch(f watched) error {
	fs := w.devices[f.tag].fs
	n, err := fs.node(f.id)
	if err != nil {
		return nil //nolint:nilerr // the guest hears of that by itself
	}
	defer fs.done(&n.descriptor)
	mask := uint32(fileEvents)
	switch n.kind {
	case unix.S_IFDIR:
		mask |= entryEvents | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK
	case unix.S_IFREG:
	default:
		return nil
	}
	wd, err := w.notify.Add(n.fd, mask)
	if err != nil {
		return err
	}
	w.watched[f] = wd
	w.watchers[wd] = append(w.watchers[wd], f)
	return nil
}

func (w *Watcher) forget(f watched) {
	wd := w.watched[f]
	delete(w.watched, f)
	var left []watched
	for _, other := range w.watchers[wd] {
		if other != f {
			left = append(left, other)
		}
	}
	if w.watchers[wd] = left; len(left) == 0 {
		delete(w.watchers, wd)
		w.notify.Remove(wd)
	}
}

// listen takes what the kernel tells, until n is closed.
func (w *Watcher) listen(n *inotify.Instance) {
	buf := make([]byte, 64<<10)
	for {
		list, err := n.Read(buf)
		if err != nil {
			return
		}
		w.mu.Lock()
		for _, e := range list {
			w.note(e)
		}
		w.mu.Unlock()
		w.pending.Wake()
	}
}

func (w *Watcher) note(e inotify.Event) {
	if e.Mask&unix.IN_Q_OVERFLOW != 0 {
		w.pending.Lose()
		return
	}
	for _, f := range w.watchers[e.Watch] {
		if e.Mask&unix.IN_IGNORED != 0 {
			delete(w.watched, f)
			continue
		}
		w.pending.Add(place{f, e.Name}, e.Mask)
	}
	if e.Mask&unix.IN_IGNORED != 0 {
		delete(w.watchers, e.Watch)
	}
}

// ShareChanges implements vmm.ShareWatcher.
func (w *Watcher) ShareChanges(ctx context.Context) (out vmm.ShareChanges, err error) {
	err = w.pending.Wait(ctx, func() (bool, time.Time) {
		var next time.Time
		out, next = w.take()
		return len(out.Changes) > 0 || out.Lost > 0, next
	})
	return out, err
}

// take takes changes of one share that are due, and tells when the next is, if one is.
func (w *Watcher) take() (out vmm.ShareChanges, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var l *look // at the share's files
	out.Lost, next = w.pending.Take(func(p place, mask uint32) bool {
		if l != nil && p.tag != out.Tag || len(out.Changes) >= settle.MaxChanges {
			return false
		}
		if l == nil {
			l = &look{fs: w.devices[p.tag].fs}
			out.Tag, out.Group = p.tag, l.fs.mark
		}
		list, again := l.at(p, mask)
		if again != 0 {
			w.pending.Add(p, again)
		}
		out.Changes = append(out.Changes, list...)
		return true
	})
	return out, next
}

// Close ends the watching.
func (w *Watcher) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.notify != nil && !w.closed {
		w.notify.Close()
	}
	w.closed = true
}
