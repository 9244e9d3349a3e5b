//go:build darwin && cgo

package pathwatch

import (
	"sync"
	"time"

	"github.com/fsnotify/fsevents"
)

// latency is for how long macOS gathers events before it tells of them, but of the first at once
// (NoDefer).
const latency = 20 * time.Millisecond

// Flags of FSEvents.h. The library's have their values from C, which the check of these sources on
// another system does not know.
const (
	noDefer    fsevents.CreateFlags = 0x2  // kFSEventStreamCreateFlagNoDefer
	fileEvents fsevents.CreateFlags = 0x10 // kFSEventStreamCreateFlagFileEvents

	// kFSEventStreamEventFlagMustScanSubDirs, UserDropped, KernelDropped
	dropped fsevents.EventFlags = 0x1 | 0x2 | 0x4
)

// eventStreams watch whole roots: FSEvents knows nothing smaller.
type eventStreams struct {
	out chan string

	mu      sync.Mutex
	streams map[string]*stream
	closed  bool
}

type stream struct {
	events *fsevents.EventStream
	done   chan struct{}
}

func newSource() (source, error) {
	return &eventStreams{out: make(chan string, maxHints), streams: map[string]*stream{}}, nil
}

func (s *eventStreams) hints() <-chan string { return s.out }

func (s *eventStreams) watch(places map[string][]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for root, st := range s.streams {
		if len(places[root]) == 0 {
			st.end()
			delete(s.streams, root)
		}
	}
	for root, list := range places {
		if s.closed || len(list) == 0 || s.streams[root] != nil {
			continue
		}
		st := &stream{
			events: &fsevents.EventStream{
				Events: make(chan []fsevents.Event), Paths: []string{root}, Latency: latency,
				Flags: fileEvents | noDefer,
			},
			done: make(chan struct{}),
		}
		if err := st.events.Start(); err != nil {
			return err
		}
		go s.listen(st)
		s.streams[root] = st
	}
	return nil
}

func (s *eventStreams) listen(st *stream) {
	for {
		select {
		case <-st.done:
			return
		case list := <-st.events.Events:
			for _, e := range list {
				hint := e.Path
				if e.Flags&dropped != 0 {
					hint = ""
				}
				select {
				case s.out <- hint:
				case <-st.done:
					return
				}
			}
		}
	}
}

// end stops a stream. Its callback may be waiting to hand over events, and is not to for ever.
func (st *stream) end() {
	close(st.done)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		st.events.Stop()
	}()
	go func() {
		for {
			select {
			case <-st.events.Events:
			case <-stopped:
				return
			}
		}
	}()
}

func (s *eventStreams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for root, st := range s.streams {
		st.end()
		delete(s.streams, root)
	}
}
