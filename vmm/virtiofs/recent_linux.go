package virtiofs

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// ownFor is for how long, at least, it is remembered what the guest has changed itself: the
	// host's kernel tells of it at once, but not to a process that gets no processor.
	ownFor = 10 * time.Second
	// maxRecent bounds what is remembered.
	maxRecent = 64 << 10
)

// recent remembers what the guest itself has changed a moment ago, so that it is not told of
// that as of the host's doing. It costs nothing while nobody asks.
type recent struct {
	on    atomic.Bool
	mu    sync.Mutex
	files memory[uint64, ownFile]
	names memory[entry, ownName]
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

// file notes that the guest changes a file, and when it has, which the caller tells by
// calling what is returned.
func (r *recent) file(id uint64) (done func()) {
	if !r.on.Load() {
		return nothing
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f, _ := r.files.get(id)
	f.running++
	r.files.set(id, f)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		f, _ := r.files.get(id)
		r.files.set(id, ownFile{time.Now(), max(0, f.running-1)})
	}
}

// name is file for an entry of a directory, which the guest makes or removes.
func (r *recent) name(dir uint64, name string, made bool) (done func()) {
	if !r.on.Load() {
		return nothing
	}
	note := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.names.set(entry{dir, name}, ownName{time.Now(), made})
	}
	note()
	return note
}

func nothing() {}

// ofFile returns what the guest has done to a file.
func (r *recent) ofFile(id uint64) (ownFile, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.files.get(id)
}

// ofName returns what the guest has done to an entry of a directory.
func (r *recent) ofName(dir uint64, name string) (ownName, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.names.get(entry{dir, name})
}

// memory forgets what is old, and all if it is too much, a whole generation at a time.
type memory[K comparable, V any] struct {
	young, old map[K]V
	since      time.Time // of the young
}

func (m *memory[K, V]) set(k K, v V) {
	m.age()
	if m.young == nil {
		m.young, m.since = map[K]V{}, time.Now()
	}
	m.young[k] = v
	if len(m.young) >= maxRecent {
		m.old, m.young = m.young, nil
	}
}

func (m *memory[K, V]) get(k K) (V, bool) {
	m.age()
	v, ok := m.young[k]
	if !ok {
		v, ok = m.old[k]
	}
	return v, ok
}

func (m *memory[K, V]) age() {
	if m.young != nil && time.Since(m.since) > ownFor {
		m.old, m.young = m.young, nil
	}
	if m.young == nil && m.old != nil && time.Since(m.since) > 2*ownFor {
		m.old = nil
	}
}
