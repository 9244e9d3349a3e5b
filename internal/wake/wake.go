// Package wake tells when the host has woken from sleep, by macOS's own word
// (IORegisterForSystemPower). Elsewhere, and where it was built without cgo, it tells
// nothing: who must know has to look for itself.
package wake

import (
	"context"
	"sync"
)

// watch is started once, when the first asks, and lasts as long as the process.
var watch struct {
	once  sync.Once
	err   error
	mu    sync.Mutex
	calls map[*func()]struct{}
}

// Notify calls f, which must not block, each time that the host has woken, until ctx ends. An
// error says that the system does not tell.
func Notify(ctx context.Context, f func()) error {
	watch.once.Do(func() { watch.err = start(woken) })
	if watch.err != nil {
		return watch.err
	}
	watch.mu.Lock()
	defer watch.mu.Unlock()
	if watch.calls == nil {
		watch.calls = map[*func()]struct{}{}
	}
	watch.calls[&f] = struct{}{}
	context.AfterFunc(ctx, func() {
		watch.mu.Lock()
		defer watch.mu.Unlock()
		delete(watch.calls, &f)
	})
	return nil
}

func woken() {
	watch.mu.Lock()
	defer watch.mu.Unlock()
	for f := range watch.calls {
		(*f)()
	}
}
