package ext4

import "encoding/binary"

// On-disk structures and numbers. Names are those of the kernel's
// fs/ext4/ext4.h without their prefixes; offsets and meanings are described in
// Documentation/filesystems/ext4 (globals, group_descr, inodes, directory,
// attributes, ifork, checksums).

var le = binary.LittleEndian

// What images written by this package have in common.
const (
	blockSize      = 4096
	blockBits      = 12
	blocksPerGroup = 8 * blockSize // as many as one bitmap block describes
	inodeSize      = 256
	inodesPerBlock = blockSize / inodeSize
	extraIsize     = 32 // up to and with i_projid
	groupDescSize  = 64 // with the 64bit feature
	sectorsPerBlk  = blockSize / 512
)

// Superblock.
const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53

	stateValid  = 1 // EXT4_VALID_FS
	stateErrors = 2 // EXT4_ERROR_FS

	errorsContinue = 1 // EXT4_ERRORS_CONTINUE
	dynamicRev     = 1 // EXT4_DYNAMIC_REV
	hashUnsigned   = 2 // EXT2_FLAGS_UNSIGNED_HASH in s_flags
	crc32cType     = 1 // EXT4_CRC32C_CHKSUM

	mountOptXattrACL = 0x4 | 0x8 // EXT4_DEFM_XATTR_USER | EXT4_DEFM_ACL
)

// Features.
const (
	compatHasJournal   = 0x4
	compatExtAttr      = 0x8
	compatDirIndex     = 0x20
	compatSparseSuper2 = 0x200

	incompatCompression = 0x1
	incompatFiletype    = 0x2
	incompatRecover     = 0x4
	incompatJournalDev  = 0x8
	incompatMetaBG      = 0x10
	incompatExtents     = 0x40
	incompat64bit       = 0x80
	incompatMMP         = 0x100
	incompatFlexBG      = 0x200
	incompatEAInode     = 0x400
	incompatCsumSeed    = 0x2000
	incompatLargeDir    = 0x4000
	incompatInlineData  = 0x8000
	incompatEncrypt     = 0x10000
	incompatCasefold    = 0x20000

	roCompatSparseSuper  = 0x1
	roCompatLargeFile    = 0x2
	roCompatHugeFile     = 0x8
	roCompatGdtCsum      = 0x10
	roCompatDirNlink     = 0x20
	roCompatExtraIsize   = 0x40
	roCompatBigalloc     = 0x200
	roCompatMetadataCsum = 0x400
	roCompatReadonly     = 0x1000
)

// Inodes with fixed numbers.
const (
	inoRoot      = 2
	inoJournal   = 8
	inoFirst     = 11 // s_first_ino, and by custom lost+found
	inoLostFound = inoFirst
)

// Group descriptor flags.
const (
	bgInodeUninit = 0x1
	bgBlockUninit = 0x2
	bgInodeZeroed = 0x4
)

// File types in i_mode.
const (
	modeFmt     = 0xF000
	modeFIFO    = 0x1000
	modeChar    = 0x2000
	modeDir     = 0x4000
	modeBlock   = 0x6000
	modeRegular = 0x8000
	modeSymlink = 0xA000
	modeSocket  = 0xC000

	modePerm   = 0o7777
	modeSetuid = 0o4000
	modeSetgid = 0o2000
	modeSticky = 0o1000
)

// Flags in i_flags.
const (
	inodeIndex      = 0x1000     // a directory with a hash tree
	inodeHugeFile   = 0x40000    // i_blocks counts blocks, not sectors
	inodeExtents    = 0x80000    // i_block holds an extent tree
	inodeEAInode    = 0x200000   // holds the value of an extended attribute
	inodeInlineData = 0x10000000 // contents in i_block and an attribute
)

// Limits.
const (
	maxNameLen    = 255
	maxSymlinkLen = blockSize - 1 // and PATH_MAX less the NUL
	fastSymlink   = 59            // longest target that fits i_block with a NUL
	maxLinks      = 65000         // EXT4_LINK_MAX
	maxFileBlocks = 1<<32 - 1     // logical block numbers, less EXT_MAX_BLOCKS
	maxFileSize   = maxFileBlocks * blockSize
	maxImageSize  = 1 << 44 // 16 TiB: physical block numbers of 32 bits
)

// superblock is struct ext4_super_block.
type superblock struct {
	InodesCount       uint32
	BlocksCountLo     uint32
	RBlocksCountLo    uint32
	FreeBlocksCountLo uint32
	FreeInodesCount   uint32
	FirstDataBlock    uint32
	LogBlockSize      uint32
	LogClusterSize    uint32
	BlocksPerGroup    uint32
	ClustersPerGroup  uint32
	InodesPerGroup    uint32
	Mtime             uint32
	Wtime             uint32
	MntCount          uint16
	MaxMntCount       uint16
	Magic             uint16
	State             uint16
	Errors            uint16
	MinorRevLevel     uint16
	Lastcheck         uint32
	Checkinterval     uint32
	CreatorOS         uint32
	RevLevel          uint32
	DefResuid         uint16
	DefResgid         uint16
	FirstIno          uint32
	InodeSize         uint16
	BlockGroupNr      uint16
	FeatureCompat     uint32
	FeatureIncompat   uint32
	FeatureRoCompat   uint32
	UUID              [16]byte
	VolumeName        [16]byte
	LastMounted       [64]byte
	AlgorithmUsage    uint32
	PreallocBlocks    uint8
	PreallocDirBlocks uint8
	ReservedGdtBlocks uint16
	JournalUUID       [16]byte
	JournalInum       uint32
	JournalDev        uint32
	LastOrphan        uint32
	HashSeed          [4]uint32
	DefHashVersion    uint8
	JnlBackupType     uint8
	DescSize          uint16
	DefaultMountOpts  uint32
	FirstMetaBg       uint32
	MkfsTime          uint32
	JnlBlocks         [17]uint32
	BlocksCountHi     uint32
	RBlocksCountHi    uint32
	FreeBlocksCountHi uint32
	MinExtraIsize     uint16
	WantExtraIsize    uint16
	Flags             uint32
	RaidStride        uint16
	MmpInterval       uint16
	MmpBlock          uint64
	RaidStripeWidth   uint32
	LogGroupsPerFlex  uint8
	ChecksumType      uint8
	EncryptionLevel   uint8
	_                 uint8
	KbytesWritten     uint64
	_                 [0x24C - 0x180]byte // snapshots, errors, mount options, quota
	BackupBgs         [2]uint32
	EncryptAlgos      [4]byte
	EncryptPwSalt     [16]byte
	LpfIno            uint32
	PrjQuotaInum      uint32
	ChecksumSeed      uint32
	_                 [0x3FC - 0x274]byte
	Checksum          uint32
}

// blocks returns the file system's size in blocks.
func (s *superblock) blocks() uint64 {
	n := uint64(s.BlocksCountLo)
	if s.FeatureIncompat&incompat64bit != 0 {
		n |= uint64(s.BlocksCountHi) << 32
	}
	return n
}

// groupDesc is struct ext4_group_desc, lo and hi halves joined.
type groupDesc struct {
	blockBitmap     uint64
	inodeBitmap     uint64
	inodeTable      uint64
	freeBlocks      uint32
	freeInodes      uint32
	usedDirs        uint32
	flags           uint16
	blockBitmapCsum uint32
	inodeBitmapCsum uint32
	itableUnused    uint32
	checksum        uint16
}

// marshal writes g into b, which is groupDescSize bytes long.
func (g *groupDesc) marshal(b []byte) {
	clear(b[:groupDescSize])
	le.PutUint32(b[0x00:], uint32(g.blockBitmap))
	le.PutUint32(b[0x04:], uint32(g.inodeBitmap))
	le.PutUint32(b[0x08:], uint32(g.inodeTable))
	le.PutUint16(b[0x0C:], uint16(g.freeBlocks))
	le.PutUint16(b[0x0E:], uint16(g.freeInodes))
	le.PutUint16(b[0x10:], uint16(g.usedDirs))
	le.PutUint16(b[0x12:], g.flags)
	le.PutUint16(b[0x18:], uint16(g.blockBitmapCsum))
	le.PutUint16(b[0x1A:], uint16(g.inodeBitmapCsum))
	le.PutUint16(b[0x1C:], uint16(g.itableUnused))
	le.PutUint16(b[0x1E:], g.checksum)
	le.PutUint32(b[0x20:], uint32(g.blockBitmap>>32))
	le.PutUint32(b[0x24:], uint32(g.inodeBitmap>>32))
	le.PutUint32(b[0x28:], uint32(g.inodeTable>>32))
	le.PutUint16(b[0x2C:], uint16(g.freeBlocks>>16))
	le.PutUint16(b[0x2E:], uint16(g.freeInodes>>16))
	le.PutUint16(b[0x30:], uint16(g.usedDirs>>16))
	le.PutUint16(b[0x32:], uint16(g.itableUnused>>16))
	le.PutUint16(b[0x38:], uint16(g.blockBitmapCsum>>16))
	le.PutUint16(b[0x3A:], uint16(g.inodeBitmapCsum>>16))
}

// Offsets in struct ext4_inode that are needed apart from its fields.
const (
	inodeCsumLoOff = 0x7C
	inodeCsumHiOff = 0x82
	inodeXattrOff  = 0x80 + extraIsize // of the inodes that this package writes
	goodOldSize    = 128               // EXT4_GOOD_OLD_INODE_SIZE
	iblockOff      = 0x28
	iblockSize     = 60
)

// timestamp is a time as an inode holds it: seconds, and two bits of epoch with
// thirty bits of nanoseconds (Documentation/filesystems/ext4/inodes.rst).
type timestamp struct{ sec, extra uint32 }

// diskInode is struct ext4_inode, lo and hi halves joined.
type diskInode struct {
	mode       uint16
	uid, gid   uint32
	size       uint64
	atime      timestamp
	ctime      timestamp
	mtime      timestamp
	crtime     timestamp
	dtime      uint32
	links      uint16
	blocks     uint64 // in sectors of 512 bytes, unless inodeHugeFile
	flags      uint32
	block      [iblockSize]byte
	generation uint32
	fileACL    uint64
	extraIsize uint16
}

// marshal writes d into b, inodeSize bytes long. Attributes in the inode and
// the checksum are the caller's.
func (d *diskInode) marshal(b []byte) {
	le.PutUint16(b[0x00:], d.mode)
	le.PutUint16(b[0x02:], uint16(d.uid))
	le.PutUint32(b[0x04:], uint32(d.size))
	le.PutUint32(b[0x08:], d.atime.sec)
	le.PutUint32(b[0x0C:], d.ctime.sec)
	le.PutUint32(b[0x10:], d.mtime.sec)
	le.PutUint32(b[0x14:], d.dtime)
	le.PutUint16(b[0x18:], uint16(d.gid))
	le.PutUint16(b[0x1A:], d.links)
	le.PutUint32(b[0x1C:], uint32(d.blocks))
	le.PutUint32(b[0x20:], d.flags)
	copy(b[iblockOff:], d.block[:])
	le.PutUint32(b[0x64:], d.generation)
	le.PutUint32(b[0x68:], uint32(d.fileACL))
	le.PutUint32(b[0x6C:], uint32(d.size>>32))
	le.PutUint16(b[0x74:], uint16(d.blocks>>32))
	le.PutUint16(b[0x76:], uint16(d.fileACL>>32))
	le.PutUint16(b[0x78:], uint16(d.uid>>16))
	le.PutUint16(b[0x7A:], uint16(d.gid>>16))
	le.PutUint16(b[0x80:], extraIsize)
	le.PutUint32(b[0x84:], d.ctime.extra)
	le.PutUint32(b[0x88:], d.mtime.extra)
	le.PutUint32(b[0x8C:], d.atime.extra)
	le.PutUint32(b[0x90:], d.crtime.sec)
	le.PutUint32(b[0x94:], d.crtime.extra)
}

// unmarshal reads an inode of at least 128 bytes.
func (d *diskInode) unmarshal(b []byte) {
	*d = diskInode{
		mode:       le.Uint16(b[0x00:]),
		uid:        uint32(le.Uint16(b[0x02:])) | uint32(le.Uint16(b[0x78:]))<<16,
		size:       uint64(le.Uint32(b[0x04:])),
		dtime:      le.Uint32(b[0x14:]),
		gid:        uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7A:]))<<16,
		links:      le.Uint16(b[0x1A:]),
		blocks:     uint64(le.Uint32(b[0x1C:])) | uint64(le.Uint16(b[0x74:]))<<32,
		flags:      le.Uint32(b[0x20:]),
		generation: le.Uint32(b[0x64:]),
		fileACL:    uint64(le.Uint32(b[0x68:])) | uint64(le.Uint16(b[0x76:]))<<32,
	}
	// i_size_high is valid for regular files and directories; elsewhere old
	// kernels kept other things there.
	if t := d.mode & modeFmt; t == modeRegular || t == modeDir {
		d.size |= uint64(le.Uint32(b[0x6C:])) << 32
	}
	copy(d.block[:], b[iblockOff:iblockOff+iblockSize])
	d.atime.sec = le.Uint32(b[0x08:])
	d.ctime.sec = le.Uint32(b[0x0C:])
	d.mtime.sec = le.Uint32(b[0x10:])
	if len(b) < goodOldSize+4 {
		return
	}
	d.extraIsize = le.Uint16(b[0x80:])
	// Each field beyond 128 bytes exists only if i_extra_isize covers it.
	field := func(off int) uint32 {
		if off+4 <= goodOldSize+int(d.extraIsize) && off+4 <= len(b) {
			return le.Uint32(b[off:])
		}
		return 0
	}
	d.ctime.extra = field(0x84)
	d.mtime.extra = field(0x88)
	d.atime.extra = field(0x8C)
	d.crtime = timestamp{field(0x90), field(0x94)}
}

// Extent tree (Documentation/filesystems/ext4/ifork.rst).
const (
	extentMagic      = 0xF30A
	extentEntrySize  = 12
	extentHeaderSize = 12
	extentsInInode   = (iblockSize - extentHeaderSize) / extentEntrySize
	extentsInBlock   = (blockSize - extentHeaderSize - 4) / extentEntrySize
	extentMaxLen     = 32768 // more means "unwritten" (EXT_INIT_MAX_LEN)
	extentMaxDepth   = 5     // EXT4_MAX_EXTENT_DEPTH
)

// Directory entries (Documentation/filesystems/ext4/directory.rst).
const (
	direntHeaderSize = 8
	direntTailSize   = 12
	direntTailType   = 0xDE

	ftUnknown = 0
	ftRegular = 1
	ftDir     = 2
	ftChar    = 3
	ftBlock   = 4
	ftFIFO    = 5
	ftSocket  = 6
	ftSymlink = 7
)

// fileType returns the directory entry's type for an inode's mode.
func fileType(mode uint16) byte {
	switch mode & modeFmt {
	case modeRegular:
		return ftRegular
	case modeDir:
		return ftDir
	case modeChar:
		return ftChar
	case modeBlock:
		return ftBlock
	case modeFIFO:
		return ftFIFO
	case modeSocket:
		return ftSocket
	case modeSymlink:
		return ftSymlink
	}
	return ftUnknown
}

// Hash tree of a directory (struct dx_root, struct dx_node, struct dx_tail).
const (
	dxHashHalfMD4 = 1
	dxRootEntries = 0x20 // offset of the root's entries, after "." and ".."
	dxNodeEntries = 8    // and of another node's
	dxEntrySize   = 8
	dxTailSize    = 8
	dxRootLimit   = (blockSize - dxRootEntries - dxTailSize) / dxEntrySize
	dxNodeLimit   = (blockSize - dxNodeEntries - dxTailSize) / dxEntrySize
)

// Extended attributes (Documentation/filesystems/ext4/attributes.rst).
const (
	xattrMagic       = 0xEA020000
	xattrHeaderSize  = 32 // of a block
	xattrEntrySize   = 16 // without the name
	xattrIbodyHeader = 4
	xattrMaxRefs     = 1024 // EXT4_XATTR_REFCOUNT_MAX
)
