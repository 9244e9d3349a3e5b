package qemu

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestContains(t *testing.T) {
	const text, window = "\x00needle\x00", 64 << 10
	pad := func(n int) string { return strings.Repeat("x", n) }
	tests := []struct {
		name, in string
		want     bool
	}{
		{"empty", "", false},
		{"whole", text, true},
		{"part", text[:len(text)-1], false},
		{"first", text + pad(3*window), true},
		{"last", pad(3*window) + text, true},
		{"a window without", pad(window), false},
		{"across a border in parts", pad(window-3) + text[:4] + "y" + text[4:] + pad(window), false},
	}
	for i := range len(text) + 1 {
		tests = append(tests, struct {
			name, in string
			want     bool
		}{"across the first border", pad(window-i) + text + pad(9), true})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.HalfReader(strings.NewReader(tt.in))} {
				if got, err := contains(r, text); got != tt.want || err != nil {
					t.Errorf("%v, %v, want %v", got, err, tt.want)
				}
			}
		})
	}
	broken := errors.New("broken")
	if _, err := contains(io.MultiReader(strings.NewReader(pad(window+5)), iotest.ErrReader(broken)), text); !errors.Is(err, broken) {
		t.Errorf("of a broken reader: %v", err)
	}
}
