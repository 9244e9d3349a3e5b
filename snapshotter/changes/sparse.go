package changes

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"

	"github.com/applevm/applevm/snapshotter/internal/ctxio"
	"github.com/applevm/applevm/snapshotter/internal/sparsetar"
	"github.com/applevm/applevm/snapshotter/union"
)

// maxFragments keeps the map of a sparse file far below what readers take: a line
// of up to 20 digits for each of two numbers, in 1 MiB.
const maxFragments = 20_000

// minHole is the smallest hole, in bytes, that is worth a place in the map, and the
// least that a file must have in holes to need one.
const minHole = 64 << 10

// mapped is a file that tells where it has no holes (ext4's).
type mapped interface {
	io.ReaderAt
	Data(off int64) (start, end int64, err error)
}

// sparse writes a regular file without its holes, if it has any that are worth it.
func (c *writer) sparse(h *tar.Header, p union.Place) (done bool, err error) {
	file, err := p.Layer.Open(p.Path)
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }() // opened to read
	f, ok := file.(mapped)
	if !ok {
		return false, nil
	}
	list, err := c.fragments(f, h.Size)
	if err != nil {
		return false, fmt.Errorf("read %q: %w", h.Name, err)
	}
	var stored int64
	for _, fr := range list {
		stored += fr.Length
	}
	if h.Size-stored < minHole {
		return false, nil
	}
	if err := c.charge(h.Name, stored); err != nil {
		return false, err
	}
	if err := c.tar.Flush(); err != nil {
		return false, err
	}
	if err := sparsetar.WriteHeader(c.out, h, list); err != nil {
		return false, fmt.Errorf("%q does not fit into a layer: %w", h.Name, err)
	}
	for _, fr := range list {
		r := ctxio.Reader(c.ctx, io.NewSectionReader(f, fr.Offset, fr.Length))
		if n, err := io.CopyBuffer(struct{ io.Writer }{c.out}, r, c.buf); err != nil || n != fr.Length {
			return false, fmt.Errorf("read %q: %d of %d bytes at %d: %w", h.Name, n, fr.Length, fr.Offset, errors.Join(err, c.ctx.Err()))
		}
	}
	_, err = c.out.Write(make([]byte, sparsetar.Padding(list)))
	return true, err
}

// fragments lists where a file of size bytes has data. Small holes count as data,
// and larger ones too where a map would get too long.
func (c *writer) fragments(f mapped, size int64) ([]sparsetar.Fragment, error) {
	hole := int64(minHole)
	var list []sparsetar.Fragment
	for off := int64(0); off < size; {
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
		start, end, err := f.Data(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		list = join(list, sparsetar.Fragment{Offset: start, Length: end - start}, hole)
		for len(list) > maxFragments {
			hole *= 2
			all := list
			list = list[:0]
			for _, fr := range all {
				list = join(list, fr, hole)
			}
		}
		off = end
	}
	return list, nil
}

// join appends a fragment, or makes the last one longer if the hole between them
// is smaller than hole. Where data begins, a block begins: all fragments but the
// file's last are whole blocks.
func join(list []sparsetar.Fragment, f sparsetar.Fragment, hole int64) []sparsetar.Fragment {
	if n := len(list); n > 0 && f.Offset-list[n-1].End() < hole {
		list[n-1].Length = f.End() - list[n-1].Offset
		return list
	}
	return append(list, f)
}
