package ext4

// dirent is a name in a directory that is being written.
type dirent struct {
	name string
	ino  uint32
	ft   byte
}

func direntSize(name string) int { return align4(direntHeaderSize + len(name)) }

// dirBlock fills one block of a directory with entries.
type dirBlock struct {
	b    []byte // the block
	off  int    // where the next entry goes
	last int    // where the last entry is, -1 if there is none
}

// leafRoom is what entries may take of a block; the checksum's tail follows.
const leafRoom = blockSize - direntTailSize

func newDirBlock(b []byte) *dirBlock {
	clear(b)
	return &dirBlock{b: b, last: -1}
}

// add writes an entry; the caller knows that it fits.
func (d *dirBlock) add(e dirent) {
	p := d.b[d.off:]
	size := direntSize(e.name)
	le.PutUint32(p[0:], e.ino)
	le.PutUint16(p[4:], uint16(size))
	p[6] = byte(len(e.name))
	p[7] = e.ft
	copy(p[direntHeaderSize:], e.name)
	d.last = d.off
	d.off += size
}

// finish stretches the last entry to the tail and writes the tail. seed is the
// directory inode's checksum seed.
func (d *dirBlock) finish(seed uint32) {
	if d.last < 0 {
		d.last = 0 // an unused entry over the whole block
	}
	le.PutUint16(d.b[d.last+4:], uint16(leafRoom-d.last))
	tail := d.b[leafRoom:]
	le.PutUint16(tail[4:], direntTailSize)
	tail[7] = direntTailType
	le.PutUint32(tail[8:], crc32c(seed, d.b[:leafRoom]))
}
