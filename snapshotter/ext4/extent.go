package ext4

// extent is a run of a file's blocks that is also a run on disk. Physical block
// numbers need 32 bits because images are at most 16 TiB.
type extent struct {
	logical  uint32
	count    uint32
	physical uint32
}

// appendExtent adds count blocks at logical, physical, to list, in order.
func appendExtent(list []extent, logical, physical, count uint32) []extent {
	if n := len(list); n > 0 {
		e := &list[n-1]
		if e.logical+e.count == logical && e.physical+e.count == physical {
			e.count += count
			return list
		}
	}
	return append(list, extent{logical, count, physical})
}

// splitExtents returns list with no extent longer than the format's limit. It
// is list itself where nothing needs splitting.
func splitExtents(list []extent) []extent {
	long := false
	for _, e := range list {
		long = long || e.count > extentMaxLen
	}
	if !long {
		return list
	}
	var out []extent
	for _, e := range list {
		for e.count > 0 {
			n := min(e.count, extentMaxLen)
			out = append(out, extent{e.logical, n, e.physical})
			e.logical += n
			e.physical += n
			e.count -= n
		}
	}
	return out
}

// extentBlocks returns the number of blocks in list.
func extentBlocks(list []extent) uint64 {
	var n uint64
	for _, e := range list {
		n += uint64(e.count)
	}
	return n
}

// extentIndex points at a block of a lower level of the tree.
type extentIndex struct{ logical, physical uint32 }

func putExtentHeader(b []byte, entries, limit, depth int) {
	le.PutUint16(b[0:], extentMagic)
	le.PutUint16(b[2:], uint16(entries))
	le.PutUint16(b[4:], uint16(limit))
	le.PutUint16(b[6:], uint16(depth))
}

func putExtents(b []byte, list []extent) {
	for i, e := range list {
		p := b[extentHeaderSize+i*extentEntrySize:]
		le.PutUint32(p[0:], e.logical)
		le.PutUint16(p[4:], uint16(e.count))
		le.PutUint32(p[8:], e.physical)
	}
}

func putExtentIndexes(b []byte, list []extentIndex) {
	for i, e := range list {
		p := b[extentHeaderSize+i*extentEntrySize:]
		le.PutUint32(p[0:], e.logical)
		le.PutUint32(p[4:], e.physical)
	}
}

// writeExtentTree puts list into an inode's i_block and, past four extents,
// into blocks that write stores; write returns a block's number. seed is the
// inode's checksum seed. The number of blocks written is returned.
func writeExtentTree(iblock []byte, list []extent, seed uint32, write func(b []byte) (uint32, error)) (uint64, error) {
	list = splitExtents(list)
	if len(list) <= extentsInInode {
		putExtentHeader(iblock, len(list), extentsInInode, 0)
		putExtents(iblock, list)
		return 0, nil
	}
	var (
		blocks uint64
		level  []extentIndex
	)
	emit := func(first uint32, entries, depth int, put func(b []byte)) (extentIndex, error) {
		b := make([]byte, blockSize)
		putExtentHeader(b, entries, extentsInBlock, depth)
		put(b)
		tail := extentHeaderSize + extentsInBlock*extentEntrySize
		le.PutUint32(b[tail:], crc32c(seed, b[:tail]))
		n, err := write(b)
		blocks++
		return extentIndex{first, n}, err
	}
	for len(list) > 0 {
		part := list[:min(len(list), extentsInBlock)]
		list = list[len(part):]
		ix, err := emit(part[0].logical, len(part), 0, func(b []byte) { putExtents(b, part) })
		if err != nil {
			return 0, err
		}
		level = append(level, ix)
	}
	depth := 1
	for ; len(level) > extentsInInode; depth++ {
		var next []extentIndex
		for len(level) > 0 {
			part := level[:min(len(level), extentsInBlock)]
			level = level[len(part):]
			ix, err := emit(part[0].logical, len(part), depth, func(b []byte) { putExtentIndexes(b, part) })
			if err != nil {
				return 0, err
			}
			next = append(next, ix)
		}
		level = next
	}
	putExtentHeader(iblock, len(level), extentsInInode, depth)
	putExtentIndexes(iblock, level)
	return blocks, nil
}
