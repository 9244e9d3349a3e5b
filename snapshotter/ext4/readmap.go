package ext4

// run is a stretch of a file's blocks that lie together on disk or are a hole.
type run struct {
	physical uint64 // 0: a hole, or blocks never written
	count    uint64 // at least 1
}

// maxLogical is the number of a block that no file has.
const maxLogical = 1<<32 - 1

// mapBlock finds block logical of a file.
func (f *FS) mapBlock(n *node, logical uint64) (run, error) {
	if logical >= maxLogical {
		return run{}, corrupt("inode %d: block %d", n.ino, logical)
	}
	if n.flags&inodeExtents != 0 {
		return f.mapExtent(n, logical)
	}
	return f.mapIndirect(n, logical)
}

// mapExtent finds a block in the file's extent tree.
func (f *FS) mapExtent(n *node, logical uint64) (run, error) {
	b := n.block[:]
	depth := -1
	end := uint64(maxLogical) // where the part of the file that b describes ends
	for {
		entries, limit, d := int(le.Uint16(b[2:])), int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
		switch {
		case le.Uint16(b) != extentMagic:
			return run{}, corrupt("inode %d: extent header", n.ino)
		case entries > limit || extentHeaderSize+limit*extentEntrySize > len(b):
			return run{}, corrupt("inode %d: %d of %d extents in one block", n.ino, entries, limit)
		case depth >= 0 && d != depth-1 || d > extentMaxDepth:
			return run{}, corrupt("inode %d: extent tree of depth %d below depth %d", n.ino, d, depth)
		}
		depth = d
		// The last entry that begins at logical or before.
		at := -1
		for i := range entries {
			first := uint64(le.Uint32(b[extentHeaderSize+i*extentEntrySize:]))
			if first > logical {
				end = min(end, first)
				break
			}
			at = i
		}
		if end <= logical {
			return run{}, corrupt("inode %d: extents out of order", n.ino)
		}
		if at < 0 {
			return run{count: end - logical}, nil
		}
		e := b[extentHeaderSize+at*extentEntrySize:]
		if depth == 0 {
			return f.leafRun(n, e, logical, end)
		}
		child := uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32
		b = make([]byte, f.block)
		if err := f.readBlock(b, child); err != nil {
			return run{}, err
		}
		if tail := extentHeaderSize + int(le.Uint16(b[4:]))*extentEntrySize; f.verify {
			if tail+4 > len(b) || le.Uint32(b[tail:]) != crc32c(n.seed, b[:tail]) {
				return run{}, corrupt("inode %d: wrong checksum of extent block %d", n.ino, child)
			}
		}
	}
}

// leafRun returns what extent e, the last to begin at logical or before, says
// of logical. Nothing else is known up to end.
func (f *FS) leafRun(n *node, e []byte, logical, end uint64) (run, error) {
	first, length := uint64(le.Uint32(e)), uint64(le.Uint16(e[4:]))
	unwritten := length > extentMaxLen
	if unwritten {
		length -= extentMaxLen
	}
	physical := uint64(le.Uint16(e[6:]))<<32 | uint64(le.Uint32(e[8:]))
	if length == 0 || physical == 0 || physical+length > f.blocks {
		return run{}, corrupt("inode %d: extent of %d blocks at block %d", n.ino, length, physical)
	}
	skip := logical - first
	if skip >= length {
		return run{count: end - logical}, nil
	}
	count := min(length-skip, end-logical)
	if unwritten {
		return run{count: count}, nil
	}
	return run{physical + skip, count}, nil
}

// mapIndirect finds a block in the maps of ext2 and ext3: twelve blocks in the
// inode, then one, two and three levels of blocks of numbers.
func (f *FS) mapIndirect(n *node, logical uint64) (run, error) {
	const direct = 12
	if logical < direct {
		return f.blockRun(n, uint64(le.Uint32(n.block[4*logical:])), 1)
	}
	perBlock := uint64(f.block / 4)
	rest, span := logical-direct, perBlock
	for level := 1; level <= 3; level++ {
		if rest >= span {
			rest -= span
			span *= perBlock
			continue
		}
		num := uint64(le.Uint32(n.block[4*(direct+level-1):]))
		for ; level > 0; level-- {
			if num == 0 {
				return run{count: span - rest}, nil
			}
			if num >= f.blocks {
				return run{}, corrupt("inode %d: indirect block %d", n.ino, num)
			}
			span /= perBlock
			var b [4]byte
			if err := f.readAt(b[:], int64(num)*f.block+int64(rest/span)*4); err != nil {
				return run{}, err
			}
			num = uint64(le.Uint32(b[:]))
			rest %= span
		}
		return f.blockRun(n, num, 1)
	}
	return run{}, corrupt("inode %d: block %d is beyond its map", n.ino, logical)
}

func (f *FS) blockRun(n *node, num, count uint64) (run, error) {
	if num >= f.blocks {
		return run{}, corrupt("inode %d: block %d of %d", n.ino, num, f.blocks)
	}
	return run{num, count}, nil
}

// readFile fills p from byte off of a file, which must end beyond it.
func (f *FS) readFile(n *node, p []byte, off int64) error {
	for len(p) > 0 {
		r, err := f.mapBlock(n, uint64(off/f.block))
		if err != nil {
			return err
		}
		in := off % f.block
		c := int64(len(p))
		if r.count <= uint64((c+in)/f.block) {
			c = int64(r.count)*f.block - in
		}
		if r.physical == 0 {
			clear(p[:c])
		} else if err := f.readAt(p[:c], int64(r.physical)*f.block+in); err != nil {
			return err
		}
		p, off = p[c:], off+c
	}
	return nil
}
