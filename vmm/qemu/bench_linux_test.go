package qemu_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/applevm/applevm/vmm/vmmtest"
)

// benchGuest boots a guest for measurements and gives them time.
func benchGuest(b *testing.B) (*vmmtest.Guest, context.Context) {
	b.Helper()
	g := vmmtest.Boot(b, newDriver(b), vmmtest.ConfigFor(vmmtest.Image(b), b.TempDir()))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	b.Cleanup(cancel)
	return g, ctx
}

func BenchmarkVsock(b *testing.B) {
	g, ctx := benchGuest(b)
	b.Run("RoundTrip", func(b *testing.B) {
		took, err := g.RoundTrips(ctx, b.N, 64)
		if err != nil {
			b.Fatal(err)
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
	})
	const size = 16 << 20
	for _, way := range []struct {
		name string
		move func(context.Context, int64) (time.Duration, error)
	}{{"ToGuest", g.Send}, {"FromGuest", g.Receive}} {
		b.Run(way.name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if _, err := way.move(ctx, size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBoot measures from Start to the guest's first line.
func BenchmarkBoot(b *testing.B) {
	img, d := vmmtest.Image(b), newDriver(b)
	var took []time.Duration
	for b.Loop() {
		g := vmmtest.Boot(b, d, vmmtest.ConfigFor(img, b.TempDir()))
		took = append(took, g.ToFirstLine)
		if err := g.Kill(); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "ms-first-line-median")
}
