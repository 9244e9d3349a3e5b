package ext4

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// Sizes that CreateEmpty takes, in bytes.
const (
	MinEmptySize = 64 << 20
	MaxEmptySize = maxImageSize
)

// bytesPerInode is mke2fs's default: one inode for each 16 KiB.
const bytesPerInode = 16 << 10

// EmptyOptions describes an empty image.
type EmptyOptions struct {
	// UUID is the file system's; a random one if it is zero.
	UUID [16]byte
	// Label is the volume's name, at most 16 bytes.
	Label string
	// Time is that of the root directory and of making; 1970 if it is zero, so
	// that equal options give equal bytes.
	Time time.Time
}

// CreateEmpty makes a writable ext4 of size bytes, rounded down to whole
// blocks, in f, an empty file opened for writing. The file is sparse: what is
// written are the superblock, the group descriptors, and the bitmaps of the
// first and the last group. All else is a hole, which reads as the zeros that
// the format asks for, so that the kernel has nothing to initialise in the
// background. The journal too is a hole until it is used.
//
// Each group has its own bitmaps and inode table at its start, so that the
// kernel can work out the bitmaps of untouched groups and none is written.
// There are no backups of the superblock: the image is made in milliseconds and
// lives in one file that is whole or lost.
func CreateEmpty(f *os.File, size int64, opts EmptyOptions) error {
	if size < MinEmptySize || size > MaxEmptySize {
		return fmt.Errorf("an ext4 image of %d bytes cannot be made: the size must be from %d to %d: %w",
			size, int64(MinEmptySize), int64(MaxEmptySize), errdefs.ErrInvalidArgument)
	}
	if len(opts.Label) > 16 {
		return fmt.Errorf("label %q is longer than 16 bytes: %w", opts.Label, errdefs.ErrInvalidArgument)
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != 0 {
		return fmt.Errorf("%s is not empty: %w", f.Name(), errdefs.ErrInvalidArgument)
	}
	if opts.UUID == ([16]byte{}) {
		if _, err := rand.Read(opts.UUID[:]); err != nil {
			return err
		}
		opts.UUID[6] = opts.UUID[6]&0x0F | 0x40
		opts.UUID[8] = opts.UUID[8]&0x3F | 0x80
	}
	if opts.Time.IsZero() {
		opts.Time = time.Unix(0, 0)
	}
	e := newEmptyImage(f, size, opts)
	if err := e.write(); err != nil {
		return fmt.Errorf("write empty image: %w", err)
	}
	return nil
}

// emptyImage is an empty image while it is made.
type emptyImage struct {
	f     *os.File
	opts  EmptyOptions
	geo   geometry
	super *superblock
	seed  uint32

	journal       uint64 // its first block
	journalBlocks uint32
	lostFound     uint64 // block of the directory
	rootDir       uint64
}

func newEmptyImage(f *os.File, size int64, opts EmptyOptions) *emptyImage {
	e := &emptyImage{f: f, opts: opts}
	g := &e.geo
	// One block less than 16 TiB is also the largest file that ext4 holds.
	g.blocks = min(uint64(size)/blockSize, maxFileBlocks)
	g.inodesPerGroup = blocksPerGroup * blockSize / bytesPerInode
	g.groups = uint32((g.blocks + blocksPerGroup - 1) / blocksPerGroup)
	// A last group with no room for its own tables is left out.
	if rest := g.blocks % blocksPerGroup; rest != 0 && rest < e.overhead()+64 {
		g.blocks -= rest
		g.groups--
	}
	e.super = newSuperblock(g, opts.UUID)
	e.seed = e.super.ChecksumSeed
	e.journalBlocks = journalSize(g.blocks)
	e.rootDir = 1 + g.gdtBlocks() + e.overhead()
	e.lostFound = e.rootDir + 1
	e.journal = e.lostFound + 1
	return e
}

// overhead returns the blocks of a group's bitmaps and inode table.
func (e *emptyImage) overhead() uint64 { return 2 + e.geo.itableBlocks() }

// tables returns where a group's bitmaps begin; the inode table follows.
func (e *emptyImage) tables(group uint32) uint64 {
	if group == 0 {
		return 1 + e.geo.gdtBlocks()
	}
	return e.geo.groupStart(group)
}

func (e *emptyImage) write() error {
	if err := e.f.Truncate(int64(e.geo.blocks) * blockSize); err != nil {
		return err
	}
	descs := make([]groupDesc, e.geo.groups)
	var free uint64
	for i := range descs {
		n, err := e.group(uint32(i), &descs[i])
		if err != nil {
			return err
		}
		free += n
	}
	for _, step := range []func() error{e.inodes, e.dirs, e.journalSuper} {
		if err := step(); err != nil {
			return err
		}
	}
	s := e.super
	s.FeatureCompat |= compatHasJournal
	s.setFree(free, s.InodesCount-inoFirst)
	s.MkfsTime = uint32(e.opts.Time.Unix())
	s.Wtime, s.Lastcheck = s.MkfsTime, s.MkfsTime
	s.JournalInum = inoJournal
	copy(s.VolumeName[:], e.opts.Label)
	// A copy of the journal's i_block and size, for when its inode is lost.
	s.JnlBackupType = 1
	j := e.journalInode()
	for i := range iblockSize / 4 {
		s.JnlBlocks[i] = le.Uint32(j.block[4*i:])
	}
	s.JnlBlocks[15], s.JnlBlocks[16] = uint32(j.size>>32), uint32(j.size)

	head := make([]byte, (1+e.geo.gdtBlocks())*blockSize)
	sb, err := s.marshal()
	if err != nil {
		return err
	}
	copy(head[superOffset:], sb)
	putGroupDescs(head[blockSize:], e.seed, descs)
	_, err = e.f.WriteAt(head, 0)
	return err
}

// group fills in a group's descriptor, writes its bitmaps if it needs any, and
// returns its free blocks.
func (e *emptyImage) group(i uint32, d *groupDesc) (uint64, error) {
	g := &e.geo
	start, end := g.groupStart(i), g.groupEnd(i)
	tables := e.tables(i)
	used := tables - start + e.overhead()
	*d = groupDesc{
		blockBitmap:  tables,
		inodeBitmap:  tables + 1,
		inodeTable:   tables + 2,
		freeInodes:   g.inodesPerGroup,
		itableUnused: g.inodesPerGroup,
		flags:        bgInodeZeroed | bgInodeUninit,
	}
	if i == 0 {
		used += 2 + uint64(e.journalBlocks)
		d.freeInodes -= inoFirst
		d.itableUnused -= inoFirst
		d.usedDirs = 2
		d.flags &^= bgInodeUninit
		b := make([]byte, blockSize)
		setBits(b, 0, inoFirst)
		setBits(b, uint64(g.inodesPerGroup), blocksPerGroup)
		d.inodeBitmapCsum = crc32c(e.seed, b[:g.inodesPerGroup/8])
		if err := e.writeBlock(b, d.inodeBitmap); err != nil {
			return 0, err
		}
	}
	// The last group's bitmap is written too, as mke2fs does: it says which
	// blocks do not exist.
	if i == 0 || i == g.groups-1 {
		b := make([]byte, blockSize)
		setBits(b, 0, used)
		setBits(b, end-start, blocksPerGroup)
		d.blockBitmapCsum = crc32c(e.seed, b)
		if err := e.writeBlock(b, d.blockBitmap); err != nil {
			return 0, err
		}
	} else {
		d.flags |= bgBlockUninit
	}
	free := end - start - used
	d.freeBlocks = uint32(free)
	return free, nil
}

// inodes writes the inodes that exist: the root, the journal, lost+found.
func (e *emptyImage) inodes() error {
	now := encodeTime(e.opts.Time)
	dir := func(mode uint16, links uint16, block uint64) diskInode {
		d := diskInode{mode: modeDir | mode, links: links, size: blockSize, blocks: sectorsPerBlk, flags: inodeExtents}
		putExtentHeader(d.block[:], 1, extentsInInode, 0)
		putExtents(d.block[:], []extent{{0, 1, uint32(block)}})
		return d
	}
	b := make([]byte, blockSize)
	for ino, d := range map[uint32]diskInode{
		inoRoot:      dir(0o755, 3, e.rootDir),
		inoJournal:   e.journalInode(),
		inoLostFound: dir(0o700, 2, e.lostFound),
	} {
		d.atime, d.ctime, d.mtime, d.crtime = now, now, now, now
		p := b[(ino-1)*inodeSize : ino*inodeSize]
		d.marshal(p)
		setInodeChecksum(e.seed, ino, p)
	}
	return e.writeBlock(b, e.tables(0)+2)
}

func (e *emptyImage) journalInode() diskInode {
	d := diskInode{
		mode:   modeRegular | 0o600,
		links:  1,
		size:   uint64(e.journalBlocks) * blockSize,
		blocks: uint64(e.journalBlocks) * sectorsPerBlk,
		flags:  inodeExtents,
	}
	putExtentHeader(d.block[:], 1, extentsInInode, 0)
	putExtents(d.block[:], []extent{{0, e.journalBlocks, uint32(e.journal)}})
	return d
}

// dirs writes the two directories.
func (e *emptyImage) dirs() error {
	for _, d := range []struct {
		self    uint32
		block   uint64
		entries []dirent
	}{
		{inoRoot, e.rootDir, []dirent{{"lost+found", inoLostFound, ftDir}}},
		{inoLostFound, e.lostFound, nil},
	} {
		w := dirWriter{
			self:   d.self,
			parent: inoRoot,
			seed:   inodeSeed(e.seed, d.self, 0),
			buf:    make([]byte, blockSize),
			emit:   func(b []byte) error { return e.writeBlock(b, d.block) },
		}
		if _, _, err := w.write(d.entries); err != nil {
			return err
		}
	}
	return nil
}

func (e *emptyImage) journalSuper() error {
	s := journalSuperblock{
		Header:     journalHeader{Magic: journalMagic, BlockType: journalSuperV2},
		BlockSize:  blockSize,
		MaxLen:     e.journalBlocks,
		First:      1,
		Sequence:   1,
		Users:      1,
		ChecksumTy: 0, // the kernel turns its checksums on at the first mount
	}
	b := make([]byte, blockSize)
	if _, err := binary.Encode(b, binary.BigEndian, &s); err != nil {
		return err
	}
	return e.writeBlock(b, e.journal)
}

func (e *emptyImage) writeBlock(b []byte, num uint64) error {
	_, err := e.f.WriteAt(b, int64(num)*blockSize)
	return err
}
