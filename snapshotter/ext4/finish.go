package ext4

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// layerDataStart is where contents begin: after the superblock and room for the
// group descriptors of the largest image. Unused room is free and a hole.
const layerDataStart = 1 + maxImageSize/blockSize/blocksPerGroup*groupDescSize/blockSize

// finisher writes what comes after the contents.
type finisher struct {
	w     *LayerWriter
	out   *blockWriter
	super *superblock
	seed  uint32 // of checksums

	inodes []*inode // by number, from inoRoot on; nil for reserved ones
	trees  map[uint32]extentTree

	// Room that every directory uses again: a layer may have many thousands.
	block   [blockSize]byte
	entries []dirent
}

// extentTree is the i_block of a file whose extents do not fit there.
type extentTree struct {
	iblock [iblockSize]byte
	blocks uint64 // blocks of the tree on disk
}

// Finish writes the rest of the image. The seed, by custom the SHA-256 of the
// tar, gives the image its UUID: equal tars and equal seeds give equal bytes.
// The file is not synced.
func (w *LayerWriter) Finish(seed [32]byte) (Stats, error) {
	if w.err != nil {
		return Stats{}, w.err
	}
	w.err = errors.New("the layer's image is finished")
	if !w.began {
		return Stats{}, errors.New("a layer's image needs a tar stream before it is finished")
	}
	if err := w.resolve(); err != nil {
		return Stats{}, err
	}
	f := &finisher{w: w, out: w.out, trees: map[uint32]extentTree{}}
	uuid := [16]byte(seed[:16])
	// Version 8, variant 1 (RFC 9562): a name made by the application's rules.
	uuid[6] = uuid[6]&0x0F | 0x80
	uuid[8] = uuid[8]&0x3F | 0x80
	f.super = newSuperblock(&geometry{}, uuid)
	f.seed = f.super.ChecksumSeed

	stats := Stats{Entries: w.entries, OpaqueRoot: w.root.dir.opaque}
	f.number()
	stats.Inodes = len(f.inodes) + inoRoot - inoFirst - 1 // without lost+found
	for _, step := range []func() error{f.xattrBlocks, f.directories, f.extentTrees} {
		if err := step(); err != nil {
			return Stats{}, err
		}
	}
	used, size, err := f.tables()
	if err != nil {
		return Stats{}, err
	}
	stats.Used, stats.Size = int64(used)*blockSize, int64(size)*blockSize
	return stats, nil
}

// number makes the image's root and gives each inode its number: the entries of
// a directory one after the other, directories in breadth-first order.
func (f *finisher) number() {
	layer := f.w.root
	root := &inode{mode: modeDir | 0o755, dir: &dir{}, ino: inoRoot}
	root.dir.parent = root
	lost := &inode{mode: modeDir | 0o700, dir: &dir{parent: root}, ino: inoLostFound}
	root.dir.put("lost+found", lost)
	root.dir.put(f.w.opts.Root, layer)
	layer.dir.parent = root
	layer.ino = inoLostFound + 1

	f.inodes = make([]*inode, inoFirst-inoRoot, f.w.nodes+inoFirst)
	f.inodes[0] = root
	f.inodes = append(f.inodes, lost, layer)
	for i := len(f.inodes) - 1; i < len(f.inodes); i++ {
		d := f.inodes[i].dir
		if d == nil {
			continue
		}
		d.index = nil // not needed any more
		for _, e := range d.entries {
			if e.node != nil && e.node.ino == 0 {
				e.node.ino = uint32(len(f.inodes) + inoRoot)
				f.inodes = append(f.inodes, e.node)
			}
		}
	}
}

// xattrBlocks writes the attribute blocks. Equal ones are shared, as the kernel
// does.
func (f *finisher) xattrBlocks() error {
	refs := map[*xattrSet]int{}
	for _, n := range f.inodes {
		if n != nil && n.xattrs != nil && len(n.xattrs.block) > 0 {
			refs[n.xattrs]++
		}
	}
	b := make([]byte, blockSize)
	at := map[*xattrSet]uint64{}
	left := map[*xattrSet]int{}
	for _, n := range f.inodes {
		if n == nil || n.xattrs == nil || len(n.xattrs.block) == 0 {
			continue
		}
		s := n.xattrs
		if left[s] == 0 {
			left[s] = min(refs[s], xattrMaxRefs)
			refs[s] -= left[s]
			clear(b)
			s.marshalBlock(b, uint32(left[s]))
			num := f.out.next()
			le.PutUint32(b[16:], xattrBlockChecksum(f.seed, num, b))
			if _, err := f.out.writeBlock(b); err != nil {
				return err
			}
			at[s] = num
		}
		left[s]--
		n.aclBlock = at[s]
	}
	return nil
}

// directories writes the blocks of directories and of long symlinks.
func (f *finisher) directories() error {
	for _, n := range f.inodes {
		var err error
		switch {
		case n == nil:
		case n.isDir():
			err = f.directory(n)
		case len(n.target) > fastSymlink:
			b := make([]byte, blockSize)
			copy(b, n.target)
			var num uint64
			num, err = f.out.writeBlock(b)
			n.extents = []extent{{0, 1, uint32(num)}}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *finisher) directory(n *inode) error {
	entries := f.entries[:0]
	n.links = 2
	for _, e := range n.dir.entries {
		if e.node == nil {
			continue
		}
		entries = append(entries, dirent{e.name, e.node.ino, fileType(e.node.mode)})
		if e.node.isDir() {
			n.links++
		}
	}
	if n.links > maxLinks {
		n.links = 1 // dir_nlink: too many to count
	}
	f.entries = entries
	logical := uint32(0)
	dw := dirWriter{
		self:     n.ino,
		parent:   n.dir.parent.ino,
		seed:     inodeSeed(f.seed, n.ino, 0),
		hashSeed: f.super.HashSeed,
		buf:      f.block[:],
		emit: func(b []byte) error {
			num, err := f.out.writeBlock(b)
			n.extents = appendExtent(n.extents, logical, uint32(num), 1)
			logical++
			return err
		},
	}
	blocks, indexed, err := dw.write(entries)
	n.size = int64(blocks) * blockSize
	n.dir.indexed = indexed
	n.dir.entries = nil
	return err
}

// extentTrees writes the extent blocks of those files that need them.
func (f *finisher) extentTrees() error {
	for _, n := range f.inodes {
		if n == nil || len(splitExtents(n.extents)) <= extentsInInode {
			continue
		}
		var t extentTree
		var err error
		t.blocks, err = writeExtentTree(t.iblock[:], n.extents, inodeSeed(f.seed, n.ino, 0), func(b []byte) (uint32, error) {
			num, err := f.out.writeBlock(b)
			return uint32(num), err
		})
		if err != nil {
			return err
		}
		f.trees[n.ino] = t
	}
	return nil
}

// plan divides an image with that many blocks before the tables, and inodes.
func plan(blocks uint64, inodes uint32) geometry {
	groups := max(1, (inodes+blocksPerGroup-1)/blocksPerGroup) // an inode bitmap is one block too
	for {
		perGroup := (inodes + groups - 1) / groups
		perGroup = (perGroup + inodesPerBlock - 1) / inodesPerBlock * inodesPerBlock
		total := blocks + uint64(groups)*(uint64(perGroup)/inodesPerBlock+2)
		need := uint32((total + blocksPerGroup - 1) / blocksPerGroup)
		if need > groups {
			groups = need
			continue
		}
		if need < groups {
			total = uint64(groups) * blocksPerGroup // more inodes than blocks
		}
		return geometry{blocks: total, groups: groups, inodesPerGroup: perGroup}
	}
}

// tables writes inode tables, bitmaps, group descriptors and the superblock,
// and returns the blocks in use and in all.
func (f *finisher) tables() (used, size uint64, err error) {
	inodes := uint32(len(f.inodes) + inoRoot - 1)
	g := plan(f.out.next(), inodes)
	if g.blocks > maxImageSize/blockSize {
		return 0, 0, fmt.Errorf("the image grows beyond %d bytes: %w", int64(maxImageSize), errdefs.ErrResourceExhausted)
	}
	descs := make([]groupDesc, g.groups)
	if err := f.inodeTables(&g, descs); err != nil {
		return 0, 0, err
	}
	free, err := f.bitmaps(&g, descs)
	if err != nil {
		return 0, 0, err
	}
	if err := f.out.flush(); err != nil {
		return 0, 0, err
	}

	s := newSuperblock(&g, f.super.UUID)
	s.FeatureRoCompat |= roCompatReadonly
	s.setFree(free, s.InodesCount-inodes)
	head := make([]byte, (1+g.gdtBlocks())*blockSize)
	sb, err := s.marshal()
	if err != nil {
		return 0, 0, err
	}
	copy(head[superOffset:], sb)
	putGroupDescs(head[blockSize:], f.seed, descs)
	if _, err := f.w.f.WriteAt(head, 0); err != nil {
		return 0, 0, fmt.Errorf("write image: %w", err)
	}
	if err := f.w.f.Truncate(int64(g.blocks) * blockSize); err != nil {
		return 0, 0, fmt.Errorf("write image: %w", err)
	}
	return g.blocks - free, g.blocks, nil
}

// putGroupDescs writes the descriptors with their checksums.
func putGroupDescs(b []byte, seed uint32, descs []groupDesc) {
	for i := range descs {
		p := b[i*groupDescSize : (i+1)*groupDescSize]
		descs[i].checksum = 0
		descs[i].marshal(p)
		le.PutUint16(p[0x1E:], groupChecksum(seed, uint32(i), p))
	}
}

func (f *finisher) inodeTables(g *geometry, descs []groupDesc) error {
	b := make([]byte, blockSize)
	for group := range g.groups {
		d := &descs[group]
		d.inodeTable = f.out.next()
		d.flags = bgInodeZeroed
		first := group*g.inodesPerGroup + 1
		last := uint32(len(f.inodes) + inoRoot - 1) // the last one in use
		for ino := first; ino < first+g.inodesPerGroup; ino += inodesPerBlock {
			clear(b)
			for i := range uint32(inodesPerBlock) {
				switch at := ino + i; {
				case at > last:
					d.itableUnused++
					d.freeInodes++
				case at >= inoRoot:
					if n := f.inodes[at-inoRoot]; n != nil {
						f.putInode(b[i*inodeSize:(i+1)*inodeSize], n)
						if n.isDir() {
							d.usedDirs++
						}
					}
				}
			}
			if _, err := f.out.writeBlock(b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *finisher) putInode(b []byte, n *inode) {
	d := diskInode{
		mode:    n.mode,
		uid:     n.uid,
		gid:     n.gid,
		size:    uint64(n.size),
		atime:   n.atime,
		ctime:   n.ctime,
		mtime:   n.mtime,
		crtime:  n.mtime,
		links:   uint16(n.links),
		blocks:  extentBlocks(n.extents) * sectorsPerBlk,
		fileACL: n.aclBlock,
	}
	if n.aclBlock != 0 {
		d.blocks += sectorsPerBlk
	}
	switch n.mode & modeFmt {
	case modeChar, modeBlock:
		putDevice(d.block[:], n.major, n.minor)
	case modeSymlink:
		if len(n.target) <= fastSymlink {
			copy(d.block[:], n.target)
			break
		}
		fallthrough
	case modeRegular, modeDir:
		d.flags |= inodeExtents
		if t, ok := f.trees[n.ino]; ok {
			d.block = t.iblock
			d.blocks += t.blocks * sectorsPerBlk
		} else {
			list := splitExtents(n.extents)
			putExtentHeader(d.block[:], len(list), extentsInInode, 0)
			putExtents(d.block[:], list)
		}
		if n.dir != nil && n.dir.indexed {
			d.flags |= inodeIndex
		}
	}
	d.marshal(b)
	if n.xattrs != nil {
		n.xattrs.marshalInline(b[inodeXattrOff:])
	}
	setInodeChecksum(f.seed, n.ino, b)
}

// putDevice writes a device number into an i_block: the old form in the first
// word where it fits, else the new one in the second (ext4_encode_dev).
func putDevice(b []byte, major, minor uint32) {
	if major < 256 && minor < 256 {
		le.PutUint32(b, major<<8|minor)
		return
	}
	le.PutUint32(b[4:], minor&0xFF|major<<8|minor&^0xFF<<12)
}

// bitmaps writes all block bitmaps, then all inode bitmaps, and returns the
// number of free blocks.
func (f *finisher) bitmaps(g *geometry, descs []groupDesc) (free uint64, err error) {
	holes := f.w.freed
	slices.SortFunc(holes, func(a, b blockRange) int { return cmp.Compare(a.start, b.start) })
	end := f.out.next() + 2*uint64(g.groups)
	used := []blockRange{{0, 1 + g.gdtBlocks()}, {layerDataStart, end}}

	b := make([]byte, blockSize)
	for group := range g.groups {
		start, stop := g.groupStart(group), g.groupEnd(group)
		clear(b)
		fillRanges(b, start, stop, used, true)
		for len(holes) > 0 && holes[0].end <= start {
			holes = holes[1:]
		}
		n := 0
		for n < len(holes) && holes[n].start < stop {
			n++
		}
		fillRanges(b, start, stop, holes[:n], false)
		d := &descs[group]
		d.freeBlocks = uint32(stop-start) - countBits(b)
		free += uint64(d.freeBlocks)
		setBits(b, stop-start, blocksPerGroup) // no such blocks
		d.blockBitmapCsum = crc32c(f.seed, b)
		if d.blockBitmap, err = f.out.writeBlock(b); err != nil {
			return 0, err
		}
	}
	for group := range g.groups {
		d := &descs[group]
		clear(b)
		setBits(b, 0, uint64(g.inodesPerGroup-d.freeInodes))
		setBits(b, uint64(g.inodesPerGroup), blocksPerGroup)
		d.inodeBitmapCsum = crc32c(f.seed, b[:g.inodesPerGroup/8])
		if d.inodeBitmap, err = f.out.writeBlock(b); err != nil {
			return 0, err
		}
	}
	return free, nil
}

// fillRanges sets or clears the bits of those ranges' parts between start and
// stop in a bitmap that begins at start.
func fillRanges(b []byte, start, stop uint64, ranges []blockRange, on bool) {
	for _, r := range ranges {
		from, to := max(r.start, start), min(r.end, stop)
		if from < to {
			fillBits(b, from-start, to-start, on)
		}
	}
}
