//go:build !(darwin && cgo)

package pathwatch

import (
	"errors"
	"io/fs"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// notifier watches directories and files one by one.
type notifier struct {
	w    *fsnotify.Watcher
	out  chan string
	done chan struct{}

	mu      sync.Mutex
	watched map[string]bool
}

func newSource() (source, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	n := &notifier{w: w, out: make(chan string, maxHints), done: make(chan struct{}), watched: map[string]bool{}}
	go n.listen()
	return n, nil
}

func (n *notifier) hints() <-chan string { return n.out }

func (n *notifier) watch(places map[string][]string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	want := map[string]bool{}
	for _, list := range places {
		for _, p := range list {
			want[p] = true
		}
	}
	for p := range n.watched {
		if !want[p] {
			_ = n.w.Remove(p) // it may be gone
			delete(n.watched, p)
		}
	}
	for p := range want {
		if n.watched[p] {
			continue
		}
		if err := n.w.Add(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		n.watched[p] = true
	}
	return nil
}

func (n *notifier) listen() {
	for {
		hint := ""
		select {
		case e, ok := <-n.w.Events:
			if !ok {
				return
			}
			hint = e.Name
		case _, ok := <-n.w.Errors:
			if !ok {
				return
			}
		}
		select {
		case n.out <- hint:
		case <-n.done:
			return
		}
	}
}

func (n *notifier) close() {
	close(n.done)
	_ = n.w.Close()
}
