package virtiofs

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/applevm/applevm/internal/recent"
)

const (
	// ownFor is for how long, at least, it is remembered what the guest has changed itself: the
	// host's kernel tells of it at once, but not to a process that gets no processor.
	ownFor = 10 * time.Second
	// maxRecent bounds what is remembered.
	maxRecent = 64 << 10
)

// ownDoings remembers what the guest itself has changed a moment ago, so that it is not told of
// that as of the host's doing. It costs nothing while nobody asks.
type ownDoings struct {
	on    atomic.Bool
	mu    sync.Mutex
	files recent.Memory[uint64, ownFile]
	names recent.Memory[entry, ownName]
}

// entry is a name in a directory that the guest knows.
type entry struct {
	dir  uint64
	name string
}

// ownFile is what the guest has done to a file's content and attributes.
type ownFile struct {
	at      time.Time // when it was done
	running int       // what it does just now
}

// ownName is what the guest has done last to an entry of a directory: made or removed it.
type ownName struct {
	at   time.Time
	made bool
}

func newOwnDoings() ownDoings {
	return ownDoings{
		files: recent.Memory[uint64, ownFile]{For: ownFor, Max: maxRecent},
		names: recent.Memory[entry, ownName]{For: ownFor, Max: maxRecent},
	}
}

// file notes that the guest changes a file, and when it has, which the caller tells by
// calling what is returned.
func (r *ownDoings) file(id uint64) (done func()) {
	if !r.on.Load() {
		return nothing
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f, _ := r.files.Get(id)
	f.running++
	r.files.Set(id, f)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		f, _ := r.files.Get(id)
		r.files.Set(id, ownFile{time.Now(), max(0, f.running-1)})
	}
}

// name is file for an entry of a directory, which the guest makes or removes.
func (r *ownDoings) name(dir uint64, name string, made bool) (done func()) {
	if !r.on.Load() {
		return nothing
	}
	note := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.names.Set(entry{dir, name}, ownName{time.Now(), made})
	}
	note()
	return note
}

func nothing() {}

// ofFile returns what the guest has done to a file.
func (r *ownDoings) ofFile(id uint64) (ownFile, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.files.Get(id)
}

// ofName returns what the guest has done to an entry of a directory.
func (r *ownDoings) ofName(dir uint64, name string) (ownName, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names.Get(entry{dir, name})
}
