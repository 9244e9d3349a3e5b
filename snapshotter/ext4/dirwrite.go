package ext4

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// dirWriter writes the blocks of one directory. Entries that fit one block make
// a linear directory, more make a hash tree (Documentation/filesystems/ext4,
// "Hash Tree Directories").
type dirWriter struct {
	self, parent uint32 // inode numbers
	seed         uint32 // the inode's checksum seed
	hashSeed     [4]uint32
	buf          []byte                   // room for a block; the caller may use it again
	emit         func(block []byte) error // stores the next block
}

// write writes the directory and returns how many blocks it has and whether
// they are a hash tree.
func (w *dirWriter) write(entries []dirent) (blocks int, indexed bool, err error) {
	size := direntSize(".") + direntSize("..")
	for i := range entries {
		size += direntSize(entries[i].name)
		if size > leafRoom {
			n, err := w.writeTree(entries)
			return n, true, err
		}
	}
	d := newDirBlock(w.buf)
	d.add(dirent{".", w.self, ftDir})
	d.add(dirent{"..", w.parent, ftDir})
	for _, e := range entries {
		d.add(e)
	}
	d.finish(w.seed)
	return 1, false, w.emit(d.b)
}

// hashed is an entry's hash and its index.
type hashed struct {
	hash uint32
	i    uint32
}

// dxEntry says where the names with hashes from hash on are.
type dxEntry struct{ hash, block uint32 }

func (w *dirWriter) writeTree(entries []dirent) (int, error) {
	order := make([]hashed, len(entries))
	for i := range entries {
		order[i] = hashed{dirHash(entries[i].name, w.hashSeed), uint32(i)}
	}
	// The name settles what the hash leaves open, so that the bytes depend on
	// the names alone.
	slices.SortFunc(order, func(a, b hashed) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(entries[a.i].name, entries[b.i].name))
	})

	// Where leaves begin has to be known before the first block is written.
	var starts []int
	var leaves []dxEntry
	room := 0
	for i, h := range order {
		n := direntSize(entries[h.i].name)
		if n > room || i == 0 {
			hash := h.hash
			if i > 0 && order[i-1].hash == hash {
				hash |= 1 // names of this hash begin in the leaf before
			}
			starts = append(starts, i)
			leaves = append(leaves, dxEntry{hash: hash})
			room = leafRoom
		}
		room -= n
	}
	starts = append(starts, len(order))

	nodes := 0
	if len(leaves) > dxRootLimit {
		nodes = (len(leaves) + dxNodeLimit - 1) / dxNodeLimit
	}
	if nodes > dxRootLimit {
		return 0, fmt.Errorf("a directory of %d entries is too large for a hash tree of two levels: %w",
			len(entries), errdefs.ErrResourceExhausted)
	}
	for i := range leaves {
		leaves[i].block = uint32(1 + nodes + i)
	}
	if err := w.writeIndex(leaves, nodes); err != nil {
		return 0, err
	}
	b := make([]byte, blockSize)
	for l := range leaves {
		d := newDirBlock(b)
		for _, h := range order[starts[l]:starts[l+1]] {
			d.add(entries[h.i])
		}
		d.finish(w.seed)
		if err := w.emit(b); err != nil {
			return 0, err
		}
	}
	return 1 + nodes + len(leaves), nil
}

// writeIndex writes the tree's root and, if there are any, its nodes.
func (w *dirWriter) writeIndex(leaves []dxEntry, nodes int) error {
	root := leaves
	if nodes > 0 {
		root = make([]dxEntry, nodes)
		for i := range root {
			root[i] = dxEntry{leaves[i*dxNodeLimit].hash, uint32(1 + i)}
		}
	}
	b := make([]byte, blockSize)
	d := newDirBlock(b)
	d.add(dirent{".", w.self, ftDir})
	d.add(dirent{"..", w.parent, ftDir})
	le.PutUint16(b[d.last+4:], uint16(blockSize-d.last))
	info := b[d.off:]
	info[4] = dxHashHalfMD4
	info[5] = 8 // length of this struct dx_root_info
	if nodes > 0 {
		info[6] = 1 // indirect_levels
	}
	w.putDx(b, dxRootEntries, dxRootLimit, root)
	if err := w.emit(b); err != nil {
		return err
	}
	for i := range nodes {
		clear(b)
		le.PutUint16(b[4:], blockSize) // an unused entry hides the node from readers
		w.putDx(b, dxNodeEntries, dxNodeLimit, leaves[i*dxNodeLimit:min((i+1)*dxNodeLimit, len(leaves))])
		if err := w.emit(b); err != nil {
			return err
		}
	}
	return nil
}

// putDx writes a node's entries at off, with room for limit, and its checksum.
// The first entry has no hash; limit and count stand there.
func (w *dirWriter) putDx(b []byte, off, limit int, entries []dxEntry) {
	for i, e := range entries {
		p := b[off+i*dxEntrySize:]
		le.PutUint32(p[0:], e.hash)
		le.PutUint32(p[4:], e.block)
	}
	le.PutUint16(b[off:], uint16(limit))
	le.PutUint16(b[off+2:], uint16(len(entries)))
	// The checksum covers the used entries and the tail with a zero checksum.
	c := crc32c(w.seed, b[:off+len(entries)*dxEntrySize])
	var zero [dxTailSize]byte
	le.PutUint32(b[off+limit*dxEntrySize+4:], crc32c(c, zero[:]))
}
