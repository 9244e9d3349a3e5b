package ext4

import (
	"context"
	"io"

	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
)

// extentMemory is what an extent takes in memory.
const extentMemory = 12

// sparseContents streams a sparse file's fragments to their blocks, without
// touching the holes between them.
func (w *LayerWriter) sparseContents(ctx context.Context, body io.Reader, list []sparsetar.Fragment, size int64) ([]extent, error) {
	// A fragment can be a few bytes in the tar but is an extent of its own.
	if err := w.chargeMeta(len(list) * extentMemory); err != nil {
		return nil, err
	}
	sink := fileSink{w: w.out}
	r := fragmentRun{body: body}
	for len(list) > 0 {
		list = r.next(list, size)
		if err := w.chargeFill(&r); err != nil {
			return nil, err
		}
		sink.logical = uint32(r.at / blockSize)
		if err := sink.readFrom(ctx, &r, r.end-r.at); err != nil {
			return nil, err
		}
	}
	return sink.extents, nil
}

// chargeFill counts the zeros of a run against MaxBytes, which counts the data
// as it is read; what exceeds it is refused before it is written.
func (w *LayerWriter) chargeFill(r *fragmentRun) error {
	blocks := blockEnd(r.end) - r.at
	if blocks > w.in.left {
		return w.in.tooLarge()
	}
	for _, f := range r.fragments {
		blocks -= f.Length
	}
	w.in.left -= blocks
	return nil
}

// blockEnd rounds up to a block's end.
func blockEnd(off int64) int64 { return (off + blockSize - 1) &^ (blockSize - 1) }

// fragmentRun reads whole blocks of a file, from at to end, with zeros where no
// fragment is.
type fragmentRun struct {
	fragments []sparsetar.Fragment
	at, end   int64
	body      io.Reader // the fragments' data, one after the other
}

// next takes the fragments at list's begin each of which has a block in common
// with the one before, and returns the others. The run ends at a block's end or
// at that of the file, which has size bytes.
func (r *fragmentRun) next(list []sparsetar.Fragment, size int64) []sparsetar.Fragment {
	n := 1
	for n < len(list) && list[n].Offset < blockEnd(list[n-1].End()) {
		n++
	}
	r.fragments = list[:n]
	r.at = list[0].Offset &^ (blockSize - 1)
	r.end = min(blockEnd(list[n-1].End()), size)
	return list[n:]
}

func (r *fragmentRun) Read(p []byte) (int, error) {
	if r.at == r.end {
		return 0, io.EOF
	}
	zerosTo := r.end
	if len(r.fragments) > 0 {
		f := &r.fragments[0]
		if zerosTo = f.Offset; r.at >= f.Offset {
			n, err := io.ReadFull(r.body, p[:min(int64(len(p)), f.End()-r.at)])
			if r.at += int64(n); r.at == f.End() {
				r.fragments = r.fragments[1:]
			}
			return n, err
		}
	}
	n := min(int64(len(p)), zerosTo-r.at)
	clear(p[:n])
	r.at += n
	return int(n), nil
}
