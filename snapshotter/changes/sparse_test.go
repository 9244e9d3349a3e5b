package changes

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"

	"github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar/sparsetest"
	"github.com/applevm/applevm/snapshotter/union"
)

const block = 4096

// TestSparse writes files with holes, of sizes that no one could write whole.
func TestSparse(t *testing.T) {
	comb := func(n int, step int64) (list []sparsetar.Fragment) {
		for i := range int64(n) {
			list = append(list, sparsetar.Fragment{Offset: i * step, Length: block})
		}
		return list
	}
	tests := []struct {
		name string
		size int64
		data []sparsetar.Fragment
		want []sparsetar.Fragment // nil: written whole
	}{
		{"the largest file", 16<<40 - 2*block, []sparsetar.Fragment{{Offset: 0, Length: block}, {Offset: 15 << 40, Length: 3 * block}},
			[]sparsetar.Fragment{{Offset: 0, Length: block}, {Offset: 15 << 40, Length: 3 * block}}},
		{"an end within a block", 8<<40 + 5, []sparsetar.Fragment{{Offset: 8 << 40, Length: 5}}, []sparsetar.Fragment{{Offset: 8 << 40, Length: 5}}},
		{"only a hole", 1 << 40, nil, []sparsetar.Fragment{}},
		{"a small hole", 8 * block, []sparsetar.Fragment{{Offset: 0, Length: block}, {Offset: 7 * block, Length: block}}, nil},
		{"small holes count as data", 1 << 30, comb(3, 2*block), []sparsetar.Fragment{{Offset: 0, Length: 5 * block}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var data []byte
			for _, f := range tt.data {
				data = append(data, bytes.Repeat([]byte{byte(f.Offset/block) | 1}, int(f.Length))...)
			}
			layer := sparsetest.Append(nil, "PAX 1.0", sparsetest.File{Name: "f", Size: tt.size, Fragments: tt.data, Data: data})
			layer = append(sparsetest.Append(layer, "GNU", sparsetest.File{Name: "g", Size: 3}), sparsetest.End()...)
			var b bytes.Buffer
			places := []union.Place{{Layer: tartest.OpenImage(t, layer), Path: manifest.LayerRoot}}
			if err := Write(context.Background(), &b, places, nil, Options{Sparse: true}); err != nil {
				t.Fatal(err)
			}

			r := sparsetar.NewReader(&b)
			for {
				h, err := r.Next()
				if err != nil {
					t.Fatal(err)
				}
				if h.Name != "f" {
					continue
				}
				if h.Size != tt.size {
					t.Errorf("size %d", h.Size)
				}
				break
			}
			list, sparse := r.Fragments()
			if sparse != (tt.want != nil) || !slices.Equal(list, tt.want) {
				t.Fatalf("sparse %v, data at %v", sparse, list)
			}
			if !sparse {
				list = []sparsetar.Fragment{{Offset: 0, Length: tt.size}}
			}
			want := tt.data
			for _, f := range list {
				got := make([]byte, f.Length)
				if _, err := io.ReadFull(r, got); err != nil {
					t.Fatal(err)
				}
				whole := make([]byte, f.Length)
				for len(want) > 0 && want[0].Offset < f.End() {
					copy(whole[want[0].Offset-f.Offset:], data[:want[0].Length])
					data, want = data[want[0].Length:], want[1:]
				}
				if !bytes.Equal(got, whole) {
					t.Errorf("other data at %v", f)
				}
			}
			if len(want) > 0 {
				t.Errorf("data at %v is not written", want)
			}
			if h, err := r.Next(); err != nil || h.Name != "g" || h.Size != 3 {
				t.Errorf("then %+v, %v", h, err)
			}
		})
	}
}

// pieces is a file with data at regular places.
type pieces struct {
	io.ReaderAt
	n, step, length int64
}

func (p pieces) Data(off int64) (start, end int64, err error) {
	i := (off + p.step - 1) / p.step
	if i >= p.n {
		return 0, 0, io.EOF
	}
	return i * p.step, i*p.step + p.length, nil
}

// However many pieces a file has, its map has room for them, and no data is lost.
func TestMapsAreBounded(t *testing.T) {
	const step = minHole + 2*block
	c := writer{ctx: context.Background()}
	for _, n := range []int64{maxFragments, maxFragments + 1, 5 * maxFragments} {
		list, err := c.fragments(pieces{n: n, step: step, length: block}, 1<<44)
		if err != nil {
			t.Fatal(err)
		}
		want := []sparsetar.Fragment{{Offset: 0, Length: (n-1)*step + block}}
		if n <= maxFragments {
			if len(list) != maxFragments || list[1] != (sparsetar.Fragment{Offset: step, Length: block}) {
				t.Errorf("%d pieces: %d fragments", n, len(list))
			}
		} else if !slices.Equal(list, want) {
			t.Errorf("%d pieces: %d fragments, %v", n, len(list), list[0])
		}
	}
}
