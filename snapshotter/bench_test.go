package snapshotter

import (
	"fmt"
	"testing"

	"github.com/applevm/applevm/internal/tartest"
)

// BenchmarkPrepare is the time to make a container's snapshot, with its
// writable image and its facade, on chains of different lengths.
func BenchmarkPrepare(b *testing.B) {
	for _, layers := range []int{0, 1, 10, 127} {
		b.Run(fmt.Sprintf("layers=%d", layers), func(b *testing.B) {
			s := open(b, b.TempDir())
			parent := ""
			for i := range layers {
				name := fmt.Sprint(i)
				unpack(b, s, name, parent, tartest.Tar(b, tartest.Dir("etc"), tartest.File("etc/passwd", name), tartest.File("f"+name, name)))
				parent = name
			}
			n := 0
			for b.Loop() {
				n++
				if _, err := s.Prepare(b.Context(), fmt.Sprint("c", n), parent); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPrepareAndRemove is the time of a container's snapshot from Prepare
// to Remove beside many others.
func BenchmarkPrepareAndRemove(b *testing.B) {
	for _, others := range []int{0, 1000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			s := open(b, b.TempDir())
			unpack(b, s, "img", "", usersLayer(b, "u"))
			for i := range others {
				if _, err := s.Prepare(b.Context(), fmt.Sprint("other", i), "img"); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if _, err := s.Prepare(b.Context(), "c", "img"); err != nil {
					b.Fatal(err)
				}
				if err := s.Remove(b.Context(), "c"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
