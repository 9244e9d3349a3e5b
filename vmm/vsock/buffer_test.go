package vsock

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/applevm/applevm/vmm/vhostuser"
)

// TestBuffer compares with the plainest buffer there is.
func TestBuffer(t *testing.T) {
	for _, limit := range []int{smallWindow, window} {
		r := rand.New(rand.NewPCG(1, uint64(limit)))
		b := buffer{limit: limit}
		var model []byte
		for range 3000 {
			in := make([]byte, r.IntN(limit-b.n+1)>>r.IntN(16))
			for i := range in {
				in[i] = byte(r.Uint32())
			}
			cut := r.IntN(len(in) + 1)
			if len(in) > 0 && !b.fill(vhostuser.Segments{make([]byte, 5), in[:cut], in[cut:]}, 5, len(in)) {
				t.Fatal("fill failed")
			}
			model = append(model, in...)
			out := make([]byte, r.IntN(limit+1)>>r.IntN(16))
			n := b.drain(out)
			if n != min(len(out), len(model)) || !bytes.Equal(out[:n], model[:n]) {
				t.Fatalf("drained %d bytes, or others than were filled", n)
			}
			model = model[n:]
			if len(b.buf) > limit {
				t.Fatalf("%d bytes are held, at most %d may be", len(b.buf), limit)
			}
		}
	}
}
