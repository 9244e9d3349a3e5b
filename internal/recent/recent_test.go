package recent

import (
	"testing"
	"time"
)

func TestMemory(t *testing.T) {
	m := Memory[int, string]{For: time.Hour, Max: 10}
	if _, ok := m.Get(1); ok {
		t.Error("it knows what it was not told")
	}
	m.Set(1, "old")
	m.Set(1, "new")
	if v, ok := m.Get(1); !ok || v != "new" {
		t.Errorf("%q, %v", v, ok)
	}
	for i := range 100 {
		m.Set(i, "x")
		if n := len(m.young) + len(m.old); n > 2*m.Max {
			t.Fatalf("%d are remembered", n)
		}
	}
	if _, ok := m.Get(99); !ok {
		t.Error("the last is forgotten")
	}
	if _, ok := m.Get(50); ok {
		t.Error("one before as many as it keeps is remembered")
	}
	m = Memory[int, string]{For: 10 * time.Millisecond, Max: 10}
	m.Set(1, "x")
	time.Sleep(15 * time.Millisecond)
	if _, ok := m.Get(1); !ok {
		t.Error("it is forgotten with the first generation")
	}
	time.Sleep(30 * time.Millisecond)
	if _, ok := m.Get(1); ok {
		t.Error("it is remembered for ever")
	}
}
