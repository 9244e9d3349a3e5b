package ext4

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// FS reads an ext4 image as an fs.FS with ReadDir, Stat, Lstat and ReadLink.
// Names need not be valid UTF-8, which is the one liberty it takes with
// fs.ValidPath. It is safe for concurrent use, and for images made by an
// enemy: whatever an image says is checked before it is used, and no image
// makes it loop. What it finds wrong wraps ErrCorrupt.
type FS struct {
	r      io.ReaderAt
	size   int64
	super  superblock
	block  int64  // bytes in a block
	blocks uint64 // blocks in the file system
	groups uint64
	isize  int64 // bytes in an inode on disk
	dsize  int64 // bytes in a group descriptor
	seed   uint32
	// verify says that checksums exist and are to be checked.
	verify bool
	// replayed says where the journal has a newer copy of a block.
	replayed map[uint64]journalCopy

	mu     sync.Mutex
	owners map[uint32]dirOwner
	dirs   dirCache
}

// dirOwner is where a directory was first met. A directory has one name; one
// that shows up under another would make a walk endless.
type dirOwner struct {
	parent uint32
	name   string
}

// Features without which an image cannot be read correctly.
const incompatSupported = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents |
	incompat64bit | incompatMMP | incompatFlexBG | incompatEAInode | incompatCsumSeed | incompatLargeDir

// Open reads the image in r, which is size bytes long. An image whose journal
// has not been replayed is shown as if it had been; nothing is written.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f, err := open(r, size, true)
	if err != nil {
		return nil, fmt.Errorf("open ext4 image: %w", err)
	}
	return f, nil
}

func open(r io.ReaderAt, size int64, verify bool) (*FS, error) {
	f := &FS{r: r, size: size, owners: map[uint32]dirOwner{inoRoot: {}}}
	if err := f.readSuper(verify); err != nil {
		return nil, err
	}
	if f.super.FeatureIncompat&incompatRecover != 0 {
		if err := f.replay(verify); err != nil {
			return nil, fmt.Errorf("replay the journal: %w", err)
		}
		// The journal may have a newer superblock.
		if err := f.readSuper(verify); err != nil {
			return nil, err
		}
	}
	root, err := f.inode(inoRoot)
	if err != nil {
		return nil, err
	}
	if root.mode&modeFmt != modeDir {
		return nil, corrupt("the root is not a directory")
	}
	return f, nil
}

// readSuper reads and checks the superblock.
func (f *FS) readSuper(verify bool) error {
	b := make([]byte, superSize)
	if err := f.readAt(b, superOffset); err != nil {
		return err
	}
	s := &f.super
	if _, err := binary.Decode(b, le, s); err != nil {
		return err
	}
	if s.Magic != superMagic {
		return fmt.Errorf("no ext4 superblock: %w", ErrCorrupt)
	}
	if unknown := s.FeatureIncompat &^ incompatSupported; unknown != 0 {
		return fmt.Errorf("the image has features that this reader does not know (incompat %#x: %s): %w",
			unknown, featureNames(unknown), errdefs.ErrNotImplemented)
	}
	f.verify = verify && s.FeatureRoCompat&roCompatMetadataCsum != 0
	if f.verify && le.Uint32(b[superSize-4:]) != crc32c(^uint32(0), b[:superSize-4]) {
		return corrupt("superblock: wrong checksum")
	}
	if s.LogBlockSize > 6 {
		return corrupt("superblock: block size 2^%d", s.LogBlockSize+10)
	}
	f.block = 1 << (10 + s.LogBlockSize)
	f.blocks = s.blocks()
	if f.blocks == 0 || f.blocks > uint64(f.size/f.block) {
		return corrupt("superblock: %d blocks of %d bytes in an image of %d bytes", f.blocks, f.block, f.size)
	}
	f.isize = goodOldSize
	if s.RevLevel >= dynamicRev {
		f.isize = int64(s.InodeSize)
	}
	if f.isize < goodOldSize || f.isize > f.block || bits.OnesCount64(uint64(f.isize)) != 1 {
		return corrupt("superblock: inodes of %d bytes", f.isize)
	}
	f.dsize = 32
	if s.FeatureIncompat&incompat64bit != 0 {
		f.dsize = int64(s.DescSize)
		if f.dsize < groupDescSize || f.dsize > 1024 || bits.OnesCount64(uint64(f.dsize)) != 1 {
			return corrupt("superblock: group descriptors of %d bytes", f.dsize)
		}
	}
	if s.BlocksPerGroup < 256 || s.InodesPerGroup == 0 || int64(s.InodesPerGroup) > 8*f.block || uint64(s.FirstDataBlock) >= f.blocks {
		return corrupt("superblock: groups of %d blocks and %d inodes", s.BlocksPerGroup, s.InodesPerGroup)
	}
	f.groups = (f.blocks - uint64(s.FirstDataBlock) + uint64(s.BlocksPerGroup) - 1) / uint64(s.BlocksPerGroup)
	if uint64(s.InodesCount) > f.groups*uint64(s.InodesPerGroup) {
		return corrupt("superblock: %d inodes in %d groups of %d", s.InodesCount, f.groups, s.InodesPerGroup)
	}
	f.seed = crc32c(^uint32(0), s.UUID[:])
	if s.FeatureIncompat&incompatCsumSeed != 0 {
		f.seed = s.ChecksumSeed
	}
	return nil
}

func featureNames(incompat uint32) string {
	names := map[uint32]string{
		incompatCompression: "compression", incompatJournalDev: "journal_dev", incompatInlineData: "inline_data",
		incompatEncrypt: "encrypt", incompatCasefold: "casefold",
	}
	var out []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if incompat&bit != 0 {
			if n := names[bit]; n != "" {
				out = append(out, n)
			} else {
				out = append(out, fmt.Sprintf("%#x", bit))
			}
		}
	}
	return strings.Join(out, ", ")
}

// readAt fills p from byte off of the image, the journal's copies first.
func (f *FS) readAt(p []byte, off int64) error {
	if off < 0 || off > f.size || int64(len(p)) > f.size-off {
		return corrupt("bytes %d to %d are outside the image", off, off+int64(len(p)))
	}
	if len(f.replayed) == 0 {
		return f.rawReadAt(p, off)
	}
	for len(p) > 0 {
		num, in := uint64(off/f.block), off%f.block
		n := min(int64(len(p)), f.block-in)
		at := off
		c, ok := f.replayed[num]
		if ok {
			at = int64(c.block)*f.block + in
		}
		if err := f.rawReadAt(p[:n], at); err != nil {
			return err
		}
		if ok && c.escaped {
			// The block begins with the journal's magic, which the log hides.
			var magic [4]byte
			binary.BigEndian.PutUint32(magic[:], journalMagic)
			if in < 4 {
				copy(p[:n], magic[in:])
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (f *FS) rawReadAt(p []byte, off int64) error {
	n, err := f.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read image at byte %d: %w", off, err)
}

// readBlock fills b from block num on.
func (f *FS) readBlock(b []byte, num uint64) error {
	if num == 0 || num >= f.blocks {
		return corrupt("block %d of %d", num, f.blocks)
	}
	return f.readAt(b, int64(num)*f.block)
}

// descBlock returns the block of group descriptors with index i.
func (f *FS) descBlock(i uint64) uint64 {
	s := &f.super
	if s.FeatureIncompat&incompatMetaBG == 0 || i < uint64(s.FirstMetaBg) {
		return uint64(s.FirstDataBlock) + 1 + i
	}
	group := i * uint64(f.block/f.dsize)
	n := uint64(s.FirstDataBlock) + group*uint64(s.BlocksPerGroup)
	if f.hasSuper(group) {
		n++
	}
	return n
}

// hasSuper reports whether a group begins with a copy of the superblock.
func (f *FS) hasSuper(group uint64) bool {
	s := &f.super
	switch {
	case group == 0:
		return true
	case s.FeatureCompat&compatSparseSuper2 != 0:
		return group == uint64(s.BackupBgs[0]) || group == uint64(s.BackupBgs[1])
	case group == 1 || s.FeatureRoCompat&roCompatSparseSuper == 0:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// inodeTable returns the first block of a group's inode table.
func (f *FS) inodeTable(group uint64) (uint64, error) {
	if group >= f.groups {
		return 0, corrupt("group %d of %d", group, f.groups)
	}
	perBlock := uint64(f.block / f.dsize)
	b := make([]byte, f.dsize)
	off := int64(f.descBlock(group/perBlock))*f.block + int64(group%perBlock)*f.dsize
	if err := f.readAt(b, off); err != nil {
		return 0, err
	}
	if f.verify {
		sum := le.Uint16(b[0x1E:])
		le.PutUint16(b[0x1E:], 0)
		if groupChecksum(f.seed, uint32(group), b) != sum {
			return 0, corrupt("group %d: wrong checksum of its descriptor", group)
		}
	}
	n := uint64(le.Uint32(b[0x08:]))
	if f.dsize >= groupDescSize {
		n |= uint64(le.Uint32(b[0x28:])) << 32
	}
	return n, nil
}

// node is an inode that was read.
type node struct {
	diskInode
	ino  uint32
	seed uint32 // of checksums
	raw  []byte // all of the inode on disk
}

// inode reads an inode that is in use.
func (f *FS) inode(ino uint32) (*node, error) {
	if ino == 0 || ino > f.super.InodesCount {
		return nil, corrupt("inode %d of %d", ino, f.super.InodesCount)
	}
	group := uint64(ino-1) / uint64(f.super.InodesPerGroup)
	index := int64(ino-1) % int64(f.super.InodesPerGroup)
	table, err := f.inodeTable(group)
	if err != nil {
		return nil, err
	}
	if table == 0 || table >= f.blocks {
		return nil, corrupt("group %d: inode table at block %d", group, table)
	}
	n := &node{ino: ino, raw: make([]byte, f.isize)}
	if err := f.readAt(n.raw, int64(table)*f.block+index*f.isize); err != nil {
		return nil, err
	}
	n.unmarshal(n.raw)
	n.seed = inodeSeed(f.seed, ino, n.generation)
	if f.verify && !n.checksumOK() {
		return nil, corrupt("inode %d: wrong checksum", ino)
	}
	switch {
	case n.mode == 0 || n.links == 0:
		return nil, corrupt("inode %d is not in use", ino)
	case goodOldSize+int64(n.extraIsize) > f.isize || n.extraIsize%4 != 0:
		return nil, corrupt("inode %d: extra size %d", ino, n.extraIsize)
	case int64(n.size) < 0:
		return nil, corrupt("inode %d: size %d", ino, n.size)
	}
	return n, nil
}

// checksumOK checks the checksum over the inode, of which the upper half exists
// only if the inode is large enough.
func (n *node) checksumOK() bool {
	b := append([]byte(nil), n.raw...)
	want := uint32(le.Uint16(b[inodeCsumLoOff:]))
	le.PutUint16(b[inodeCsumLoOff:], 0)
	mask := uint32(0xFFFF)
	if len(b) > goodOldSize && n.extraIsize >= 4 {
		want |= uint32(le.Uint16(b[inodeCsumHiOff:])) << 16
		le.PutUint16(b[inodeCsumHiOff:], 0)
		mask = ^uint32(0)
	}
	return crc32c(n.seed, b)&mask == want
}

// device returns the numbers of a device node.
func (n *node) device() (major, minor uint32) {
	if v := le.Uint32(n.block[0:]); v != 0 {
		return v >> 8 & 0xFF, v & 0xFF
	}
	v := le.Uint32(n.block[4:])
	return v >> 8 & 0xFFF, v&0xFF | v>>12&^0xFF
}
