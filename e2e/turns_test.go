package e2e

import (
	"flag"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// turns has the tests of one stack run one after the other, beside those of another stack: one
// machine keeps one processor busy, and the smallest host has two.
type turns struct {
	mu     sync.Mutex
	holder atomic.Value // the name of the test whose turn it is
}

// takeTurn waits until no other test of these turns runs, and lets none run until t has ended. Of subtests it
// takes note only by their test: what asks for a stack in them alone runs by itself.
func (ts *turns) takeTurn(t *testing.T) {
	t.Helper()
	test, _, isSub := strings.Cut(t.Name(), "/")
	if isSub || ts.holder.Load() == test {
		return
	}
	t.Parallel()
	ts.mu.Lock()
	ts.holder.Store(test)
	began := time.Now()
	t.Cleanup(func() {
		t.Logf("it took %v; what is told besides includes its wait for others", time.Since(began).Round(10*time.Millisecond))
		ts.holder.Store("")
		ts.mu.Unlock()
	})
}

// allAtOnce lets every test wait for its turn: the turns say how many run.
func allAtOnce() error { return flag.Set("test.parallel", "1000") }
