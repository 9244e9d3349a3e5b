// Package recent remembers what has happened a moment ago, within bounds.
package recent

import "time"

// Memory keeps what was set for For at the least, if that are no more than Max, and forgets it then,
// a whole generation at a time. For and Max must be set; nothing else. It is not safe for concurrent
// use.
type Memory[K comparable, V any] struct {
	For time.Duration
	Max int

	young, old map[K]V
	since      time.Time // of the young
}

// Set remembers v as what is known of k.
func (m *Memory[K, V]) Set(k K, v V) {
	m.age()
	if m.young == nil {
		m.young, m.since = map[K]V{}, time.Now()
	}
	m.young[k] = v
	if len(m.young) >= m.Max {
		m.old, m.young = m.young, nil
	}
}

// Get returns what is known of k.
func (m *Memory[K, V]) Get(k K) (V, bool) {
	m.age()
	v, ok := m.young[k]
	if !ok {
		v, ok = m.old[k]
	}
	return v, ok
}

func (m *Memory[K, V]) age() {
	if m.young != nil && time.Since(m.since) > m.For {
		m.old, m.young = m.young, nil
	}
	if m.young == nil && m.old != nil && time.Since(m.since) > 2*m.For {
		m.old = nil
	}
}
